-- Every statement of the running store (supervisor process), by the name that sql.py gives it.
-- A fragment stands for itself wherever {its name} is written. A parameter with a name is the field of a record in
-- writes.py.

-- fragment: facts
    created_ms, extras, has_s3_config, low_priority, attempts, retries, started_ms, ended_ms, worker_id, error,
    (SELECT COALESCE(MAX(position) + 1, 0) FROM chunks WHERE chunks.seq = jobs.seq AND attempt = attempts), chunks_taken,
    timeout_ms, expires_ms, streamed, cause

-- fragment: whole_input
    COALESCE(input, (SELECT value FROM inputs WHERE inputs.seq = jobs.seq))


-- name: insert_queued
INSERT INTO jobs (seq, id, status, low_priority, has_s3_config, created_ms, timeout_ms, expires_ms, extras, input)
VALUES (?, ?, 'IN_QUEUE', ?, ?, ?, ?, ?, ?, ?)

-- name: insert_started
INSERT INTO jobs (seq, id, status, low_priority, has_s3_config, created_ms, timeout_ms, expires_ms, extras, input,
    attempts, started_ms, worker_id)
VALUES (?, ?, 'IN_PROGRESS', ?, ?, ?, ?, ?, ?, ?, 1, ?, ?)

-- name: insert_input
INSERT INTO inputs (seq, value) VALUES (?, ?)

-- name: start
UPDATE jobs
SET status = 'IN_PROGRESS', attempts = attempts + 1, started_ms = :started_ms, worker_id = :worker_id
WHERE seq = :seq AND status = 'IN_QUEUE'

-- name: end_running
UPDATE jobs
SET status = ?, output = ?, error = ?, cause = ?, ended_ms = ?
WHERE seq = ? AND status = 'IN_PROGRESS'

-- name: end_queued
UPDATE jobs
SET status = ?, output = ?, error = ?, cause = ?, ended_ms = ?
WHERE seq = ? AND status = 'IN_QUEUE'

-- name: requeue
UPDATE jobs
SET status = 'IN_QUEUE', retries = retries + 1, attempts = attempts - (NOT :charged), started_ms = NULL, worker_id = NULL,
    chunks_taken = 0, streamed = 0
WHERE seq = :seq AND status = 'IN_PROGRESS'

-- name: retry
UPDATE jobs
SET status = 'IN_QUEUE', retries = retries + 1, attempts = 0, started_ms = NULL, worker_id = NULL, chunks_taken = 0,
    streamed = 0, ended_ms = NULL, output = NULL, error = NULL, cause = NULL, created_ms = ?, expires_ms = ?
WHERE seq = ? AND status = ?

-- name: add_chunk
INSERT INTO chunks (seq, attempt, position, value)
SELECT seq, attempts, :index, :value FROM jobs
WHERE seq = :seq AND attempts = :attempt AND status = 'IN_PROGRESS'
AND :index = (SELECT COALESCE(MAX(position) + 1, 0) FROM chunks WHERE chunks.seq = jobs.seq AND attempt = attempts)

-- name: take_chunks
UPDATE jobs
SET chunks_taken = :taken, streamed = 1
WHERE seq = :seq
AND :taken <= (SELECT COALESCE(MAX(position) + 1, 0) FROM chunks WHERE chunks.seq = jobs.seq AND attempt = attempts)

-- name: show_chunks
UPDATE jobs SET streamed = 1 WHERE seq = :seq

-- name: add_log
INSERT INTO logs (seq, at, text) VALUES (:seq, :at, :text)

-- name: add_webhook
INSERT INTO webhooks (id, job, url, receiver, due_ms, size) VALUES (?, ?, ?, ?, ?, ?)

-- name: add_webhook_body
INSERT INTO webhook_bodies (id, body) VALUES (?, ?)

-- name: put_off_webhook
UPDATE webhooks SET tries = tries + 1, due_ms = :due_ms WHERE id = :id

-- name: drop_webhook
DELETE FROM webhooks WHERE id = :id

-- name: probe
UPDATE forgotten SET seq = seq

-- name: delete_job
DELETE FROM jobs WHERE seq = ? AND ended_ms IS NOT NULL
RETURNING status, retries


-- name: get
SELECT seq, id, status, {whole_input}, output, {facts} FROM jobs WHERE id = ?

-- name: facts
SELECT seq, id, status, x'', NULL, {facts} FROM jobs WHERE id = ?

-- name: queued
SELECT seq, id, status, COALESCE(input, x''), NULL, {facts} FROM jobs
WHERE ended_ms IS NULL AND status = 'IN_QUEUE' AND low_priority = ? AND seq > ?
ORDER BY seq LIMIT ?

-- name: running
SELECT seq, id, status, x'', NULL, {facts} FROM jobs
WHERE ended_ms IS NULL AND status = 'IN_PROGRESS'
ORDER BY low_priority, seq

-- name: with_s3_config
SELECT id FROM jobs WHERE ended_ms IS NULL AND has_s3_config

-- name: newest_ended
SELECT seq, id, status, x'', NULL, {facts} FROM jobs
WHERE ended_ms IS NOT NULL
ORDER BY ended_ms DESC, seq DESC LIMIT ?

-- name: oldest_ended
SELECT seq FROM jobs WHERE ended_ms < ? ORDER BY ended_ms, seq LIMIT ?

-- name: page
SELECT seq, id, status, x'', NULL, {facts} FROM jobs
WHERE seq < ? AND seq >= ? AND (? IS NULL OR status = ?)
ORDER BY seq DESC LIMIT ?

-- name: expired
SELECT id FROM jobs
WHERE ended_ms IS NULL AND expires_ms IS NOT NULL AND expires_ms <= ?
ORDER BY expires_ms LIMIT ?

-- name: next_expiry
SELECT MIN(expires_ms) FROM jobs WHERE ended_ms IS NULL AND expires_ms IS NOT NULL

-- name: log
SELECT at, text FROM logs
WHERE seq = ? AND at >= COALESCE((SELECT MAX(at) FROM logs WHERE seq = ? AND at <= ?), 0)
ORDER BY at LIMIT ?

-- name: log_end
SELECT COALESCE(at + LENGTH(text), 0) FROM logs WHERE seq = ? ORDER BY at DESC LIMIT 1

-- name: webhook_receivers
WITH RECURSIVE receivers (name) AS (  -- from one to the next by the index, however many webhooks each has
    SELECT MIN(receiver) FROM webhooks
    UNION ALL
    SELECT (SELECT MIN(receiver) FROM webhooks WHERE receiver > name) FROM receivers WHERE name IS NOT NULL
)
SELECT name, (SELECT MIN(due_ms) FROM webhooks WHERE receiver = name) FROM receivers WHERE name IS NOT NULL

-- name: webhooks
SELECT id, job, url, receiver, tries, due_ms, size FROM webhooks WHERE receiver = ? ORDER BY due_ms LIMIT ?

-- name: webhook_body
SELECT body FROM webhook_bodies WHERE id = ?

-- name: webhook_count
SELECT COUNT(*) FROM webhooks

-- name: chunks
SELECT position, value FROM jobs JOIN chunks USING (seq)
WHERE seq = ? AND attempt = attempts AND position >= ? AND (? IS NULL OR retries = ?)
ORDER BY position LIMIT ?

-- name: counts
SELECT status, COUNT(*) FROM jobs WHERE ended_ms IS NULL GROUP BY status
UNION ALL
SELECT status, COUNT(*) FROM jobs WHERE ended_ms IS NOT NULL GROUP BY status

-- name: retried
SELECT COALESCE(SUM(retries), 0) FROM jobs WHERE retries > 0

-- name: owner
SELECT handler FROM owner

-- name: set_owner
INSERT OR REPLACE INTO owner (one, handler) VALUES (1, ?)

-- name: next_seq
SELECT 1 + MAX(COALESCE((SELECT MAX(seq) FROM jobs), 0), (SELECT seq FROM forgotten))

-- name: used
SELECT (page_count - freelist_count) * page_size
FROM pragma_page_count, pragma_freelist_count, pragma_page_size

-- name: queued_counts
SELECT low_priority, COUNT(*) FROM jobs WHERE ended_ms IS NULL AND status = 'IN_QUEUE' GROUP BY low_priority
