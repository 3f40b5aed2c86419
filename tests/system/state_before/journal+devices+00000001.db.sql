PRAGMA user_version=2;
BEGIN TRANSACTION;
CREATE TABLE events(seq INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL,
             pid INTEGER NOT NULL, owner TEXT NOT NULL, call INTEGER NOT NULL,
             syscall TEXT NOT NULL, object TEXT NOT NULL, errno INTEGER NOT NULL,
             note TEXT NOT NULL, subject TEXT NOT NULL DEFAULT '');
INSERT INTO "events" VALUES(4,1.79606000314048552509e+09,'device',0,'',0,'','/dev/image/echo',0,'up','');
INSERT INTO "events" VALUES(16,1.79606000326621103287e+09,'device',0,'',0,'','/dev/image/echo',0,'unmounted echo was unmounted','');
COMMIT;
