PRAGMA user_version=2;
BEGIN TRANSACTION;
CREATE TABLE counters(hour INTEGER, subject TEXT, syscall TEXT, object TEXT, rule TEXT,
             calls INTEGER NOT NULL, PRIMARY KEY(hour, subject, syscall, object, rule));
CREATE TABLE identifiers(name TEXT PRIMARY KEY, next INTEGER NOT NULL);
INSERT INTO "identifiers" VALUES('calls',18);
COMMIT;
