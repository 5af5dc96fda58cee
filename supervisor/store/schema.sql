-- The job store, version 1. Run once, inside one transaction, when a store is made (supervisor process, opening.py).
-- The rules of a job's life are kept here: whatever writes to this file, an illegal job cannot be stored.

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
    cause         TEXT,  -- why the program ended it, a cause.JobCause as JSON; then there is neither error nor output
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
-- Who times out next.
CREATE INDEX jobs_expiring ON jobs (expires_ms) WHERE ended_ms IS NULL AND expires_ms IS NOT NULL;
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

-- What a job printed, in pieces; at: how many bytes of it stand before this one.
CREATE TABLE logs (
    seq  INTEGER NOT NULL,
    at   INTEGER NOT NULL,
    text BLOB    NOT NULL,
    PRIMARY KEY (seq, at)
) WITHOUT ROWID;

-- Webhooks that were not acknowledged. Not bound to the job's row: that may be forgotten or run again before.
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

-- Apart from the row that each try writes anew; with a rowid, since a search among large rows without one reads them whole.
CREATE TABLE webhook_bodies (
    id   TEXT PRIMARY KEY,
    body BLOB NOT NULL
);

CREATE TRIGGER webhooks_dropped AFTER DELETE ON webhooks
BEGIN
    DELETE FROM webhook_bodies WHERE id = OLD.id;
END;

-- The highest seq of a job that was forgotten: a number is never given twice.
CREATE TABLE forgotten (seq INTEGER NOT NULL);
INSERT INTO forgotten VALUES (0);

-- The handler that the store belongs to; without a row it is nobody's.
CREATE TABLE owner (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    handler BLOB    NOT NULL  -- its name as owner.py words it; a path need not be UTF-8
);

-- Which state of a job may follow which.
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

-- So a queued job never has chunks, and a start finds none of an older attempt. One that had ended begins as if new.
CREATE TRIGGER jobs_requeued AFTER UPDATE OF status ON jobs
WHEN NEW.status = 'IN_QUEUE'
BEGIN
    DELETE FROM chunks WHERE seq = NEW.seq;
    DELETE FROM logs WHERE seq = NEW.seq AND OLD.ended_ms IS NOT NULL;
END;

CREATE TRIGGER jobs_forgotten AFTER DELETE ON jobs
BEGIN
    DELETE FROM chunks WHERE seq = OLD.seq;
    DELETE FROM inputs WHERE seq = OLD.seq;
    DELETE FROM logs WHERE seq = OLD.seq;
    UPDATE forgotten SET seq = OLD.seq WHERE seq < OLD.seq;
END;
