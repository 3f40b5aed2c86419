PRAGMA user_version=2;
BEGIN TRANSACTION;
CREATE TABLE events(seq INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL,
             pid INTEGER NOT NULL, owner TEXT NOT NULL, call INTEGER NOT NULL,
             syscall TEXT NOT NULL, object TEXT NOT NULL, errno INTEGER NOT NULL,
             note TEXT NOT NULL, subject TEXT NOT NULL DEFAULT '');
INSERT INTO "events" VALUES(1,1796060002.97001,'boot',0,'',0,'','',0,'up 0.1.0','');
INSERT INTO "events" VALUES(2,1.79606000307152223593e+09,'call',0,'root',0,'user_add','/users/bob',0,'','u:root r:owner app:notes');
INSERT INTO "events" VALUES(3,1.79606000307277417185e+09,'begin',0,'root',0,'spawn','/dev/image/echo',0,'','u:root r:owner app:notes');
INSERT INTO "events" VALUES(5,1.79606000319142651558e+09,'process',1,'root',0,'','/proc/1',0,'spawn echo','app:notes pid:1');
INSERT INTO "events" VALUES(6,1.79606000319158577924e+09,'end',0,'root',3,'spawn','/dev/image/echo',0,'','u:root r:owner app:notes');
INSERT INTO "events" VALUES(7,1.79606000320327758787e+09,'call',1,'root',0,'write_mem','/proc/own/1/mem',0,'','u:root r:owner app:notes');
INSERT INTO "events" VALUES(8,1.7960600032054824829e+09,'begin',1,'root',0,'generate','/proc/own/1/generate',0,'','u:root r:owner app:notes pid:1');
INSERT INTO "events" VALUES(9,1.79606000321925449378e+09,'end',1,'root',8,'generate','/proc/own/1/generate',0,'','u:root r:owner app:notes pid:1');
INSERT INTO "events" VALUES(10,1.79606000322755408283e+09,'process',2,'root',0,'','/proc/2',0,'fork of 1','app:notes pid:1 pid:2');
INSERT INTO "events" VALUES(11,1.79606000322763848303e+09,'call',1,'root',0,'fork','/proc/own/1/fork',0,'','u:root r:owner app:notes pid:1');
INSERT INTO "events" VALUES(12,1.7960600032313187122e+09,'call',2,'root',0,'pin','/proc/own/2/mem',0,'','u:root r:owner app:notes');
INSERT INTO "events" VALUES(13,1.79606000323419094082e+09,'call',2,'root',0,'write_mem','/proc/own/2/mem',0,'','u:root r:owner app:notes');
INSERT INTO "events" VALUES(14,1.79606000326329159734e+09,'call',2,'root',0,'send','/proc/own/2/mail',0,'','u:root r:owner app:notes');
INSERT INTO "events" VALUES(15,1.79606000326506757731e+09,'call',2,'root',0,'nice','/proc/own/2',0,'','u:root r:owner app:notes');
INSERT INTO "events" VALUES(17,1.79606000326628470423e+09,'boot',0,'',0,'','',0,'down','');
COMMIT;
