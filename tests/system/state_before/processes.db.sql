PRAGMA user_version=6;
BEGIN TRANSACTION;
CREATE TABLE identifiers(name TEXT PRIMARY KEY, next INTEGER NOT NULL);
INSERT INTO "identifiers" VALUES('pids',3);
CREATE TABLE processes(pid INTEGER PRIMARY KEY AUTOINCREMENT, parent INTEGER NOT NULL,
             owner TEXT NOT NULL, app TEXT NOT NULL, model TEXT NOT NULL, nice INTEGER NOT NULL,
             created REAL NOT NULL, state TEXT NOT NULL, code INTEGER, reason TEXT NOT NULL, keep INTEGER NOT NULL DEFAULT 1, bounds TEXT NOT NULL DEFAULT 'r:careful', ended REAL NOT NULL DEFAULT 0, started_by TEXT NOT NULL DEFAULT '');
INSERT INTO "processes" VALUES(1,0,'root','notes','echo',0,1.79606000317902565008e+09,'ready',NULL,'',1,'r:owner app:notes',0.0,'notes');
INSERT INTO "processes" VALUES(2,1,'root','notes','echo',5,1.79606000322087979315e+09,'ready',NULL,'',1,'r:owner app:notes pid:1',0.0,'notes');
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('processes',2);
COMMIT;
