# SPDX-License-Identifier: Apache-2.0
"""CNI configurations: which file counts, and what is wrong with a bad one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from criagent.net.cni.config import CniConfigError, find_plugin, load, load_first, parse


def conflist(**fields: Any) -> dict[str, Any]:
    plugins = [{"type": "bridge"}]
    return {"name": "net", "cniVersion": "1.0.0", "plugins": plugins, **fields}


def test_the_first_configuration_in_name_order_counts(tmp_path: Path) -> None:
    (tmp_path / "20-b.conflist").write_text(json.dumps(conflist(name="second")))
    (tmp_path / "10-a.conf").write_text(json.dumps({"name": "first", "type": "ptp", "mtu": 1400}))
    (tmp_path / "00-notes.txt").write_text("no configuration")
    found = load_first(tmp_path)
    assert (found.name, found.version) == ("first", "0.3.1")
    assert found.plugins[0]["mtu"] == 1400


def test_a_broken_first_file_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "20-b.conflist").write_text(json.dumps(conflist()))
    (tmp_path / "10-a.conflist").write_text("{")
    with pytest.raises(CniConfigError, match=r"10-a\.conflist is not valid JSON"):
        load_first(tmp_path)


@pytest.mark.parametrize("made", [True, False])
def test_without_a_configuration_the_directory_is_named(tmp_path: Path, made: bool) -> None:
    directory = tmp_path / "net.d"
    if made:
        directory.mkdir()
    with pytest.raises(CniConfigError, match=f"no network configuration in {directory}"):
        load_first(directory)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "not a JSON object"),
        (None, "not a JSON object"),
        ({}, "name"),
        (conflist(name=""), "name"),
        (conflist(name=7), "name"),
        (conflist(name="../net"), "name"),
        (conflist(name="net\n"), "name"),
        (conflist(cniVersion="0.2.1"), "cniVersion"),
        (conflist(cniVersion="2.0.0"), "cniVersion"),
        (conflist(cniVersion=1.0), "cniVersion"),
        (conflist(cniVersion=["1.0.0"]), "cniVersion"),
        (conflist(cniVersions="1.0.0"), "cniVersions is not a list"),
        (conflist(plugins=[]), "list of plugins is missing or empty"),
        (conflist(plugins={}), "list of plugins is missing or empty"),
        (conflist(plugins=["bridge"]), "plugin type"),
        (conflist(plugins=[{}]), "plugin type"),
        (conflist(plugins=[{"type": "bridge"}, {"type": 1}]), "plugin type"),
        (conflist(plugins=[{"type": "../../bin/sh"}]), r"plugin type '\.\./\.\./bin/sh'"),
        (conflist(plugins=[{"type": "/bin/sh"}]), "plugin type"),
        (conflist(plugins=[{"type": ".."}]), "plugin type"),
        (conflist(plugins=[{"type": "bridge\n"}]), "plugin type"),
        (conflist(plugins=[{"type": "bridge", "ipam": {"type": "../sh"}}]), "ipam type"),
        (conflist(plugins=[{"type": "bridge", "ipam": {"type": 1}}]), "ipam type"),
    ],
)
def test_a_malformed_configuration_is_refused_by_file(
    tmp_path: Path, document: object, words: str
) -> None:
    file = tmp_path / "10-net.conflist"
    file.write_text(json.dumps(document))
    with pytest.raises(CniConfigError, match=f"{file}.*{words}"):
        load(file)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "10-net.conflist"
    file.write_text("[" * 200_000)
    with pytest.raises(CniConfigError, match="is not valid JSON"):
        load(file)


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "10-net.conflist"
    file.write_text(json.dumps(conflist(pad="x" * (1 << 20))))
    with pytest.raises(CniConfigError, match="larger than"):
        load(file)


def test_what_is_no_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "10-net.conf")
    with pytest.raises(CniConfigError, match="not a regular file"):
        load_first(tmp_path)
    (tmp_path / "05-net.conf").symlink_to("nowhere")
    with pytest.raises(CniConfigError, match=r"05-net\.conf cannot be read"):
        load_first(tmp_path)


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        ({"cniVersion": "0.3.1"}, "0.3.1"),
        ({"cniVersion": "0.1.0"}, "0.1.0"),
        ({"cniVersion": "0.2.0"}, "0.2.0"),
        ({"cniVersion": ""}, "0.3.1"),
        ({"cniVersion": "", "cniVersions": ["1.0.0"]}, "1.0.0"),
        ({"cniVersion": "0.3.1", "cniVersions": ["0.4.0", "1.1.0", "9.0.0"]}, "1.1.0"),
        ({"cniVersion": "9.0.0", "cniVersions": ["1.0.0"]}, "1.0.0"),
    ],
)
def test_the_highest_known_version_counts(fields: dict[str, Any], version: str) -> None:
    assert parse(conflist(**fields), "test").version == version


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({"cniVersion": "1.0.0"}, set()),
        ({"cniVersion": "1.1.0"}, {"STATUS", "GC"}),
        ({"cniVersion": "1.1.0", "disableGC": True}, {"STATUS"}),
    ],
)
def test_verbs_follow_version_and_switches(fields: dict[str, Any], known: set[str]) -> None:
    network = parse(conflist(**fields), "test")
    again = parse(network.document, "test")
    for found in (network, again):
        assert {verb for verb in ("STATUS", "GC") if found.knows(verb)} == known


def test_a_plugin_is_found_in_the_first_directory_that_has_it(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for directory in (one, two):
        directory.mkdir()
    (two / "bridge").write_text("")
    assert find_plugin("bridge", (one, two)) == two / "bridge"
    (one / "bridge").write_text("")
    assert find_plugin("bridge", (one, two)) == one / "bridge"
    with pytest.raises(CniConfigError, match=f'"ptp" is not in {one}, {two}; install it'):
        find_plugin("ptp", (one, two))
