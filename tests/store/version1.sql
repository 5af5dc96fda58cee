-- A job store of version 1, with its tables as that version made them and jobs in every state. What stands below the last heading
-- is in the write-ahead log only, as a kill leaves it.

PRAGMA page_size = 2048;
BEGIN;
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
PRAGMA application_id = 1937076342;
PRAGMA user_version = 1;
COMMIT;
PRAGMA journal_mode = WAL;
PRAGMA wal_autocheckpoint = 0;

INSERT INTO jobs (seq, id, status, low_priority, has_s3_config, created_ms, extras, input) VALUES
    (1, 'forgotten', 'IN_QUEUE', 0, 0, 1000, NULL, x'31'),
    (2, 'completed', 'IN_QUEUE', 0, 0, 1002, '{"webhook": "http://x"}', '{"n": 2}'),
    (3, 'failed', 'IN_QUEUE', 0, 0, 1003, NULL, '{"n": 3}'),
    (4, 'cancelled', 'IN_QUEUE', 1, 0, 1004, NULL, '{"n": 4}'),
    (5, 'timed-out', 'IN_QUEUE', 0, 0, 1005, NULL, '{"n": 5}'),
    (6, 'running-ü', 'IN_QUEUE', 0, 1, 1006, NULL, NULL),
    (7, 'low', 'IN_QUEUE', 1, 0, 1007, NULL, '{"n": 7}'),
    (8, 'put-back', 'IN_QUEUE', 0, 0, 1008, NULL, '{"n": 8}');
INSERT INTO inputs VALUES (6, CAST('"' || REPLACE(HEX(ZEROBLOB(5000)), '0', 'in') || '"' AS BLOB));
UPDATE jobs SET extras = CAST(extras AS BLOB), input = CAST(input AS BLOB);
UPDATE jobs SET status = 'IN_PROGRESS', attempts = attempts + 1, started_ms = 2000, worker_id = 'gpu0-1'
WHERE id NOT IN ('cancelled', 'low');
UPDATE jobs SET status = 'COMPLETED', ended_ms = 3001, output = CAST('"' || REPLACE(HEX(ZEROBLOB(50000)), '0', 'out') || '"' AS BLOB)
WHERE id IN ('forgotten', 'completed');
UPDATE jobs SET status = 'FAILED', ended_ms = 3003, error = 'broke: é' WHERE id = 'failed';
UPDATE jobs SET status = 'CANCELLED', ended_ms = 3004 WHERE id = 'cancelled';
INSERT INTO chunks VALUES (5, 1, 0, x'30'), (5, 1, 1, x'31');
UPDATE jobs SET status = 'TIMED_OUT', ended_ms = 3005, chunks_taken = 1 WHERE id = 'timed-out';
DELETE FROM jobs WHERE id = 'forgotten';
PRAGMA wal_checkpoint(TRUNCATE);

-- in the log only
UPDATE jobs SET status = 'IN_QUEUE', retries = retries + 1, started_ms = NULL, worker_id = NULL WHERE id = 'put-back';
INSERT INTO jobs (seq, id, status, low_priority, has_s3_config, created_ms, attempts, started_ms, worker_id, input)
VALUES (9, 'streams', 'IN_PROGRESS', 0, 0, 1009, 1, 2009, 'gpu1-4', CAST('{"n": 9}' AS BLOB));
INSERT INTO chunks VALUES (9, 1, 0, x'30'), (9, 1, 1, x'31'), (9, 1, 2, x'32');
INSERT INTO jobs (seq, id, status, low_priority, has_s3_config, created_ms, input)
VALUES (10, 'newest', 'IN_QUEUE', 0, 0, 1010, CAST('{"n": 10}' AS BLOB));
