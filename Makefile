# SPDX-License-Identifier: Apache-2.0
# Everything that CI and contributors run. `make help` lists it.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/criagent
VENV  := $(CACHE)/venv-$(shell sha256sum requirements-dev.lock 2>/dev/null | sha256sum | cut -c1-16)
PY    := $(VENV)/bin/python

.PHONY: help proto reference venv demo bench test unit alerts unit-matrix coverage fuzz node storage install-test deb rpm node-image package-test drill nri page critest critest-storage \
	conformance kubernetes check flame bench-storage bench-compare fire power-cuts soak \
	vm-test vm-test-full vm-power-cuts vm-power-records

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

$(PY):
	tests/need module=ensurepip:python3-venv
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install -q --require-hashes -r requirements-dev.lock

.PHONY: print-python
print-python:
	@echo $(PY)

venv: $(PY)  ## the development environment, cached outside the checkout

proto: $(PY)  ## generate criagent/_proto from proto/
	$(PY) proto/generate.py

reference: $(PY)  ## docs/configuration.md and deploy/config.toml from criagent/config
	PYTHONPATH=. $(PY) docs/generate.py

demo:  ## bare machine: a real image and real pods through crictl, then a clean node
	tests/nodes/chroot/demo

bench:  ## figures of docs/architecture.md as a table and as build/bench.json
	CRIAGENT_ARGS="--log-level warning" tests/node/up python3 tests/bench/measure.py

bench-compare: $(PY)  ## BASE=commit and this checkout (or HEAD=commit) in turn; fails if a figure is worse. ROUNDS= THRESHOLD=5 SEED=
	$(if $(BASE),,$(error usage: make bench-compare BASE=commit [HEAD=commit] [ROUNDS=8] [THRESHOLD=5] [SEED=number]))
	PYTHONPATH=. $(PY) -m tests.bench.compare $(BASE) $(if $(HEAD),--head $(HEAD)) \
	    $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(THRESHOLD),--threshold $(THRESHOLD)) $(if $(SEED),--seed $(SEED))

flame: $(PY)  ## where the CPU time of one pod goes, as docs/pictures/pod-up.svg; needs perf, and py-spy from PyPI
	CRIAGENT_ARGS="--log-level warning" PYTHONPATH=. $(PY) -m tests.bench.flame

bench-storage:  ## the storage drivers beside each other, as a table and build/bench-storage.json
	CRIAGENT_ARGS="--log-level warning" tests/node/up python3 -m tests.bench.storage

# Bytecode outside the checkout, whatever the caller's environment says; temporary files in memory, in
# a directory of each run: pytest's own numbering removes those of a run beside it.
unit: $(PY)  ## pure tests, no root needed
	scratch=$$(mktemp -d /dev/shm/criagent-unit.XXXXXX 2> /dev/null || mktemp -d); \
	trap 'rm -rf "$$scratch"' EXIT; \
	PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CACHE)/bytecode $(PY) -m pytest tests/unit \
	    -n $(or $(UNIT_PROCESSES),2) -p no:cacheprovider --basetemp="$$scratch/tmp"

alerts: $(PY)  ## promtool sees each alert of deploy/prometheus fire when it should
	programs=$$(tests/nodes/tools/promtool) && PATH="$$programs:$$PATH" $(PY) -m pytest -q -p no:cacheprovider -k promtool tests/unit/test_alerts.py

unit-matrix:  ## the unit tier with each Python from 3.11 to 3.14 that is here, as a table
	tests/unit/matrix

coverage: $(PY)  ## lines of the program that the unit tier runs, per package
	mkdir -p build; rm -f build/coverage*
	scratch=$$(mktemp -d /dev/shm/criagent-unit.XXXXXX 2> /dev/null || mktemp -d); \
	trap 'rm -rf "$$scratch"' EXIT; \
	PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CACHE)/bytecode $(VENV)/bin/coverage run -m pytest tests/unit \
	    -q -n $(or $(UNIT_PROCESSES),2) -p no:cacheprovider --basetemp="$$scratch/tmp"
	$(VENV)/bin/coverage combine -q
	$(VENV)/bin/coverage json -q -o build/coverage.json
	$(PY) -m tests.lint.coverage_table build/coverage.json

check: $(PY)  ## linters, types, import rules, terms, generated code and reference
	$(VENV)/bin/ruff check criagent tests proto docs packaging
	$(VENV)/bin/ruff format --check criagent tests proto docs packaging
	$(VENV)/bin/mypy
	PYTHONPATH=. $(VENV)/bin/lint-imports
	$(PY) -m tests.lint.terms
	$(PY) -m tests.lint.spdx
	$(PY) proto/generate.py --check
	PYTHONPATH=. $(PY) docs/generate.py --check

fuzz: $(PY)  ## random inputs for FUZZ_SECONDS=10 each; FUZZ="NAME…" SEED= INPUT= (tests/fuzz)
	$(if $(FUZZ),,$(PY) -m tests.fuzz.run --pure)
	tests/node/enter python3 -m tests.fuzz.run $(or $(FUZZ),--in-node)

node: $(PY)  ## pods, restarts, networks, crashes in the test node; needs root
	tests/e2e/side-by-side
	tests/node/up python3 -m pytest -q -o timeout=300 -p no:cacheprovider tests/crash
	POWER_CUTS=4 tests/node/up python3 -m pytest -q -o timeout=600 -p no:cacheprovider tests/power -k "overlay/ext4 or migration"

drill:  ## the broken nodes of docs/troubleshooting.md, each repaired by its commands; needs root
	tests/node/up python3 -m pytest -q -o timeout=300 -p no:cacheprovider tests/drill

storage:  ## every storage driver through one suite in the test node, as a table; needs root
	tests/node/enter python3 -m pytest -q -o timeout=300 -p no:cacheprovider tests/storage

power-cuts:  ## the disk of a node cut off at POWER_CUTS=200 random moments of each ground; POWER_SEED=
	POWER_CUTS=$(or $(POWER_CUTS),200) tests/node/up python3 -m pytest -q -s -p no:cacheprovider \
	    -o timeout=14400 $(if $(GROUND),-k $(GROUND)) tests/power

vm-power-cuts: $(PY)  ## QEMU killed at POWER_CUTS=200 random moments of its agent's life, without the disk's cache; POWER_SEED=
	POWER_CUTS=$(or $(POWER_CUTS),200) PYTHONPATH=. CRIAGENT_VM_MACHINE="$(PY) -m tests.power.vm_cuts" \
	    unshare --mount tests/vm/run tests/power/vm_guest.py

vm-power-records: $(PY)  ## lives of a VM's agent on recorded disks, each cut off at POWER_CUTS=200 random moments; POWER_SEED= GROUND=
	rm -rf build/power
	PYTHONPATH=. CRIAGENT_VM_MACHINE="$(PY) -m tests.power.vm_record build/power" \
	    unshare --mount tests/vm/run tests/power/vm_guest.py
	POWER_CUTS=$(or $(POWER_CUTS),200) POWER_RECORDS=/src/build/power tests/node/up python3 -m pytest -q -s \
	    -p no:cacheprovider -o timeout=14400 tests/power/test_vm_records.py

fire: $(PY)  ## each verb without descriptors or memory, on a full and on a failing disk, in the test node; needs root
	tests/node/up python3 -m pytest -q -o timeout=600 -p no:cacheprovider tests/fire

soak:  ## pods and kills at random for SOAK_SECONDS=3600, or SOAK_PODS= and SOAK_CONTAINERS= (SEED= STANDING= WORKERS=); needs root
	CRIAGENT_ARGS="--log-level warning" tests/node/up python3 -m tests.soak.run \
	    --seconds $(or $(SOAK_SECONDS),3600) $(if $(SEED),--seed $(SEED)) $(if $(SOAK_PODS),--pods $(SOAK_PODS)) \
	    $(if $(SOAK_CONTAINERS),--containers $(SOAK_CONTAINERS)) $(if $(STANDING),--standing $(STANDING)) \
	    $(if $(WORKERS),--workers $(WORKERS))

install-test:  ## the install steps of README and docs, typed into a bare Debian 13; needs root
	tests/nodes/chroot/bare-install

deb:  ## the Debian package, in dist/; needs root
	packaging/lint "$$(packaging/deb)"

rpm:  ## the RPM package, in dist/; needs root
	packaging/rpm

node-image:  ## the image of deploy/daemonset.yaml as an OCI archive, in dist/; needs root
	packaging/node-image

package-test:  ## build all three twice, check, install, update, go back, remove them; needs root
	tests/package/run

critest:  ## critest whole with each default handler (HANDLER="crun runc", SEED=), judged by expected.toml
	status=0; for handler in $(or $(HANDLER),crun runc); do \
	    if [ $$handler = gvisor ]; then export CRIAGENT_PROGRAMS=$$(tests/gvisor/build); fi; \
	    CRIAGENT_HANDLER=$$handler CRIAGENT_ARGS="--log-level warning" \
	        tests/node/up tests/conformance/run || status=1; \
	done; exit $$status

critest-storage:  ## critest whole with each storage driver of this node (DRIVER="btrfs erofs")
	status=0; for driver in $(or $(DRIVER),overlay native btrfs erofs fuse-overlayfs); do \
	    CRIAGENT_STORAGE=$$driver CRIAGENT_ARGS="--log-level warning" \
	        tests/node/up tests/conformance/run || status=1; \
	done; exit $$status

conformance:  ## critest thrice (SEEDS="1 2 3"), its streaming over WebSocket, its benchmarks
	CRIAGENT_ARGS="--log-level warning" tests/node/up tests/conformance/all

kubernetes:  ## a kubelet's pods, then a cluster with kubectl, natively in the test node; needs root
	tests/kubelet/run
	tests/cluster/run

vm-test:  ## systemd, limits, AppArmor, a kubelet in a virtual machine; needs root, prints a table
	tests/vm/suites

vm-test-full:  ## the same, then for hours: critest whole, idle windows, a cluster, kubeadm, kind
	tests/nodes/chroot/bare-doctor
	tests/vm/suites --full

page:  ## the node page in headless Chromium at two widths, in build/page; needs root
	tests/page/run

nri:  ## plugins of NRI's own repository in the test node; needs root, git and the internet
	tests/nri/run

test: unit alerts fuzz node storage drill critest kubernetes  ## all tests that this machine can run; prints what is skipped and why
	@echo "not run here: make page (Chromium, a root of 670 MB), and the VM tier (systemd driver, limits, AppArmor, kubelet): make vm-test, make vm-test-full"
