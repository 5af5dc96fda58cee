-- The job store, version 1. Run once, inside one transaction, when a store is made (supervisor process, opening.py).
-- The rules of job.py are kept here as well: whatever writes to this file, an illegal job cannot be stored.

CREATE TABLE jobs (
    seq           INTEGER PRIMARY KEY,
    id            TEXT    NOT NULL UNIQUE,
    status        TEXT    NOT NULL,
    low_priority  INTEGER NOT NULL,
    has_s3_config INTEGER NOT NULL,
    attempts      INTEGER NOT NULL DEFAULT 0,
    retries       INTEGER NOT NULL DEFAULT 0,
    chunks_taken  INTEGER NOT NULL DEFAULT 0,
    created_ms    INTEGER NOT NULL,
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

-- Few rows whatever the history: the queue in its order, and what runs.
CREATE INDEX jobs_live ON jobs (status, low_priority, seq) WHERE ended_ms IS NULL;
-- Retention and the newest ends; with the status, so that counting reads no job.
CREATE INDEX jobs_ended ON jobs (ended_ms, seq, status) WHERE ended_ms IS NOT NULL;
CREATE INDEX jobs_retried ON jobs (retries) WHERE retries > 0;

-- A job's row is written three times in its life; a large input is kept out of it and written once.
CREATE TABLE inputs (
    seq   INTEGER PRIMARY KEY,
    value BLOB NOT NULL
);

CREATE TABLE chunks (
    seq      INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    position INTEGER NOT NULL,
    value    BLOB    NOT NULL,
    PRIMARY KEY (seq, attempt, position)
) WITHOUT ROWID;

-- The highest seq of a job that was forgotten: a number is never given twice.
CREATE TABLE forgotten (seq INTEGER NOT NULL);
INSERT INTO forgotten VALUES (0);

-- The same table as job.TRANSITIONS; a test compares them.
CREATE TABLE transitions (
    before TEXT NOT NULL,
    after  TEXT NOT NULL,
    PRIMARY KEY (before, after)
) WITHOUT ROWID;
INSERT INTO transitions VALUES
    ('IN_QUEUE', 'IN_PROGRESS'),
    ('IN_QUEUE', 'FAILED'),
    ('IN_QUEUE', 'CANCELLED'),
    ('IN_QUEUE', 'TIMED_OUT'),
    ('IN_PROGRESS', 'IN_QUEUE'),
    ('IN_PROGRESS', 'COMPLETED'),
    ('IN_PROGRESS', 'FAILED'),
    ('IN_PROGRESS', 'CANCELLED'),
    ('IN_PROGRESS', 'TIMED_OUT'),
    ('FAILED', 'IN_QUEUE'),
    ('TIMED_OUT', 'IN_QUEUE');

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

-- So a queued job never has chunks, and a start finds none of an older attempt.
CREATE TRIGGER jobs_requeued AFTER UPDATE OF status ON jobs
WHEN NEW.status = 'IN_QUEUE'
BEGIN
    DELETE FROM chunks WHERE seq = NEW.seq;
END;

CREATE TRIGGER jobs_forgotten AFTER DELETE ON jobs
BEGIN
    DELETE FROM chunks WHERE seq = OLD.seq;
    DELETE FROM inputs WHERE seq = OLD.seq;
    UPDATE forgotten SET seq = OLD.seq WHERE seq < OLD.seq;
END;
