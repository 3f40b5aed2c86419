PRAGMA user_version=2;
BEGIN TRANSACTION;
CREATE TABLE identifiers(name TEXT PRIMARY KEY, next INTEGER NOT NULL);
INSERT INTO "identifiers" VALUES('mail',2);
CREATE TABLE mail(number INTEGER PRIMARY KEY AUTOINCREMENT, pid INTEGER NOT NULL,
             sender INTEGER NOT NULL, author TEXT NOT NULL, time REAL NOT NULL, body TEXT NOT NULL,
             labels TEXT NOT NULL);
INSERT INTO "mail" VALUES(1,2,1,'app:notes',1.79606000326292157172e+09,'a letter','[]');
CREATE INDEX mail_by_pid ON mail(pid);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('mail',1);
COMMIT;
