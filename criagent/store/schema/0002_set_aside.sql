-- Rows that this version could not decode, whole, with the table they were taken from.
CREATE TABLE set_aside (
    origin  TEXT NOT NULL,
    id      TEXT NOT NULL,
    columns TEXT NOT NULL, -- JSON of the row's other columns
    body    BLOB NOT NULL,
    reason  TEXT NOT NULL,
    at      TEXT NOT NULL
) STRICT;
