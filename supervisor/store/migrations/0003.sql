-- From version 2 to 3: which handler the store belongs to, nobody's so far; and why the program ended a job, as a value: jobs that
-- ended before keep their error's text and have none. Run by migrations.py; a migration that was released is not changed any more.

-- once
CREATE TABLE owner (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    handler BLOB    NOT NULL  -- its name as owner.py words it; a path need not be UTF-8
);
ALTER TABLE jobs ADD COLUMN cause TEXT;
