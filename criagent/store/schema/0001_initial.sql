CREATE TABLE sandboxes (
    id   TEXT PRIMARY KEY,
    key  TEXT NOT NULL UNIQUE,
    body BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE containers (
    id         TEXT PRIMARY KEY,
    key        TEXT NOT NULL UNIQUE,
    sandbox_id TEXT NOT NULL REFERENCES sandboxes (id),
    body       BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE images (
    id   TEXT PRIMARY KEY,
    body BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- AUTOINCREMENT: a number names a directory, and a directory may outlive its row in the trash.
CREATE TABLE snapshots (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    key    TEXT NOT NULL UNIQUE,
    body   BLOB NOT NULL
) STRICT;

CREATE TABLE blobs (
    digest     TEXT PRIMARY KEY,
    size       INTEGER NOT NULL,
    media_type TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE addresses (
    address    TEXT PRIMARY KEY,
    sandbox_id TEXT NOT NULL,
    position   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX addresses_of_sandbox ON addresses (sandbox_id);

CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
