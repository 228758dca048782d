"""The tables of the queue, and what SQLite keeps true by itself.

jobs     one row for each job, until it was kept long enough
bodies   `request` until the job is done (the dead keep theirs), `result` once it ended
totals   jobs and bytes of each (queue, key, state), so that nothing is ever counted through
"""

from __future__ import annotations

SCHEMA_VERSION = 1

SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS jobs (
    queue TEXT NOT NULL, id TEXT NOT NULL, key TEXT NOT NULL, state TEXT NOT NULL,
    head BLOB NOT NULL, fingerprint TEXT NOT NULL, lease TEXT, outcome BLOB,
    runs INTEGER NOT NULL DEFAULT 0, interruptions INTEGER NOT NULL DEFAULT 0,
    to_cancel INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL, due_at REAL NOT NULL, started_at REAL, ended_at REAL,
    body_bytes INTEGER NOT NULL, result_bytes INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (queue, id));
CREATE INDEX IF NOT EXISTS jobs_due ON jobs (queue, key, due_at) WHERE state = 'waiting';
CREATE INDEX IF NOT EXISTS jobs_leased ON jobs (lease) WHERE lease IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_ended ON jobs (state, ended_at) WHERE ended_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS bodies (
    queue TEXT NOT NULL, id TEXT NOT NULL, part TEXT NOT NULL, content BLOB NOT NULL,
    PRIMARY KEY (queue, id, part));
CREATE TABLE IF NOT EXISTS totals (
    queue TEXT NOT NULL, key TEXT NOT NULL, state TEXT NOT NULL,
    jobs INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (queue, key, state)) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS job_added AFTER INSERT ON jobs BEGIN
    INSERT INTO totals VALUES (NEW.queue, NEW.key, NEW.state, 1, NEW.bytes)
    ON CONFLICT (queue, key, state)
    DO UPDATE SET jobs = jobs + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER IF NOT EXISTS job_changed AFTER UPDATE OF state, bytes ON jobs BEGIN
    UPDATE totals SET jobs = jobs - 1, bytes = bytes - OLD.bytes
    WHERE queue = OLD.queue AND key = OLD.key AND state = OLD.state;
    INSERT INTO totals VALUES (NEW.queue, NEW.key, NEW.state, 1, NEW.bytes)
    ON CONFLICT (queue, key, state)
    DO UPDATE SET jobs = jobs + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER IF NOT EXISTS job_removed AFTER DELETE ON jobs BEGIN
    UPDATE totals SET jobs = jobs - 1, bytes = bytes - OLD.bytes
    WHERE queue = OLD.queue AND key = OLD.key AND state = OLD.state;
    DELETE FROM bodies WHERE queue = OLD.queue AND id = OLD.id;
END;
COMMIT;
"""
