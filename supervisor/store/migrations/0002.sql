-- From version 1 to 2: what a job's policy says, its log, and webhooks that wait. A table whose columns are not all new at its end
-- is made anew and filled row by row, so that its text is that of schema.sql and `output` stays the last column.
-- Run by migrations.py; a migration that was released is not changed any more.

-- once
DROP TRIGGER jobs_begin;
DROP TRIGGER jobs_transition;
DROP TRIGGER jobs_requeued;
DROP TRIGGER jobs_forgotten;
DROP INDEX jobs_live;
DROP INDEX jobs_ended;
DROP INDEX jobs_retried;
ALTER TABLE jobs RENAME TO old_jobs;

CREATE TABLE jobs (
    seq           INTEGER PRIMARY KEY,
    id            TEXT    NOT NULL UNIQUE,
    status        TEXT    NOT NULL,
    low_priority  INTEGER NOT NULL,
    has_s3_config INTEGER NOT NULL,
    attempts      INTEGER NOT NULL DEFAULT 0,
    retries       INTEGER NOT NULL DEFAULT 0,
    chunks_taken  INTEGER NOT NULL DEFAULT 0,
    streamed      INTEGER NOT NULL DEFAULT 0,  -- somebody was shown a chunk of the newest attempt
    created_ms    INTEGER NOT NULL,
    timeout_ms    INTEGER,                     -- how long a start may last
    expires_ms    INTEGER,                     -- when the job times out, queued or running
    started_ms    INTEGER,
    ended_ms      INTEGER,
    worker_id     TEXT,
    extras        BLOB,
    error         TEXT,
    input         BLOB,  -- NULL: a large one, in inputs
    output        BLOB,  -- last, so that reading what stands before it never walks through it
    CHECK ((status = 'IN_QUEUE' OR status = 'IN_PROGRESS') = (ended_ms IS NULL)),
    CHECK (status <> 'IN_PROGRESS' OR (started_ms IS NOT NULL AND attempts > 0)),
    CHECK (attempts >= 0 AND chunks_taken >= 0)
);

CREATE TABLE logs (
    seq  INTEGER NOT NULL,
    at   INTEGER NOT NULL,
    text BLOB    NOT NULL,
    PRIMARY KEY (seq, at)
) WITHOUT ROWID;

CREATE TABLE webhooks (
    id       TEXT    PRIMARY KEY,
    job      TEXT    NOT NULL,
    url      TEXT    NOT NULL,
    receiver TEXT    NOT NULL,  -- the URL's scheme, host and port
    tries    INTEGER NOT NULL DEFAULT 0,
    due_ms   INTEGER NOT NULL,
    size     INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX webhooks_due ON webhooks (receiver, due_ms);

CREATE TABLE webhook_bodies (
    id   TEXT PRIMARY KEY,
    body BLOB NOT NULL
);

-- until nothing is left
INSERT INTO jobs (
    seq, id, status, low_priority, has_s3_config, attempts, retries, chunks_taken, streamed, created_ms, started_ms, ended_ms,
    worker_id, extras, error, input, output
)
SELECT
    seq, id, status, low_priority, has_s3_config, attempts, retries, chunks_taken, chunks_taken > 0, created_ms, started_ms, ended_ms,
    worker_id, extras, error, input, output
FROM old_jobs ORDER BY seq LIMIT 4;
DELETE FROM old_jobs WHERE seq <= (SELECT MAX(seq) FROM jobs);

-- once
DROP TABLE old_jobs;
CREATE INDEX jobs_live ON jobs (status, low_priority, seq) WHERE ended_ms IS NULL;
CREATE INDEX jobs_ended ON jobs (ended_ms, seq, status) WHERE ended_ms IS NOT NULL;
CREATE INDEX jobs_expiring ON jobs (expires_ms) WHERE ended_ms IS NULL AND expires_ms IS NOT NULL;
CREATE INDEX jobs_retried ON jobs (retries) WHERE retries > 0;

CREATE TRIGGER jobs_begin BEFORE INSERT ON jobs
WHEN NEW.status <> 'IN_QUEUE' AND NEW.status <> 'IN_PROGRESS'
BEGIN
    SELECT RAISE(ABORT, 'a job begins IN_QUEUE or IN_PROGRESS');
END;

CREATE TRIGGER jobs_transition BEFORE UPDATE OF status ON jobs
WHEN NOT EXISTS (SELECT 1 FROM transitions WHERE before = OLD.status AND after = NEW.status)
BEGIN
    SELECT RAISE(ABORT, 'this step between two states of a job is illegal');
END;

CREATE TRIGGER jobs_requeued AFTER UPDATE OF status ON jobs
WHEN NEW.status = 'IN_QUEUE'
BEGIN
    DELETE FROM chunks WHERE seq = NEW.seq;
END;

CREATE TRIGGER jobs_forgotten AFTER DELETE ON jobs
BEGIN
    DELETE FROM chunks WHERE seq = OLD.seq;
    DELETE FROM inputs WHERE seq = OLD.seq;
    DELETE FROM logs WHERE seq = OLD.seq;
    UPDATE forgotten SET seq = OLD.seq WHERE seq < OLD.seq;
END;
