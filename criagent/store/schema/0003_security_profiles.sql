-- Security profiles from registries; `id` is the digest of the manifest.
CREATE TABLE security_profiles (
    id   TEXT PRIMARY KEY,
    body BLOB NOT NULL
) STRICT, WITHOUT ROWID;
