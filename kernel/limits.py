"""Every limit and default of the system, one line each, with its unit.

Nothing else in the tree holds a number that a person might want to change. Standard library only.
"""

# --- wire -------------------------------------------------------------------------------------
PROTOCOL_VERSION = 1
REQUEST_BYTES = 8 * 1024 * 1024  # one frame of a client, header not counted
REPLY_BYTES = 64 * 1024 * 1024  # one frame of the kernel
HELLO_BYTES = 16 * 1024  # one frame before hello has been accepted
SMALL_BYTES = 4 * 1024  # a frame up to here is not counted against its user
SKIP_BYTES = 1024**3  # a refused frame up to here is read and dropped; above, it is fatal
FRAME_DEPTH = 16  # nesting of arrays and maps in a frame of a client
FRAME_ITEMS = 65_536  # values in all arrays and maps of such a frame together
ARRAY_ITEMS = 4_096  # one array of it
MAP_ITEMS = 256  # one map of it
CALLS_IN_FLIGHT = 32  # per connection
USER_CALLS = 4_096  # in flight on all connections of one user
USER_REQUEST_BYTES = 64 * 1024 * 1024  # of one user's requests that have not ended
USER_REPLY_BYTES = 32 * 1024 * 1024  # of one user's unread replies: above, readers get no more
USER_READS = 4  # calls of one user that read at the same time: each makes a reply of any size
TURN_BYTES = 256 * 1024  # of requests of one connection, before the other connections' turn
CONNECTIONS = 1_024
USER_CONNECTIONS = 64  # of each user but the socket's owner
OWNER_CONNECTIONS = 16  # of all of them, kept for the owner of the socket
DESCRIPTORS_RESERVED = 64  # kept free for databases and engines
ANCESTORS = 64  # processes of the system above one that connects
KEY_LOOK_S = 60.0  # whether a key has expired is looked at this often: clocks are set
ACCEPT_PAUSE_S = 1.0  # after an accept that failed: there may be no descriptor left
READERS = 8  # threads that read databases for clients
JOURNAL_READERS = 4  # threads that read the journal for clients
USER_JOURNAL_READERS = 1  # of them, for one user at once
FILES = 4  # threads that read the files of images, and threads that read what is mapped
OWNER_FILES = 2  # of these, for one owner at once
HELLO_S = 2.0  # from connect to hello
BODY_S = 5.0  # a frame that has begun goes on by PROGRESS_BYTES, or ends, within this
PROGRESS_BYTES = 64 * 1024  # within BODY_S or KICK_S: a slow peer, and not one that has stopped
WRITE_BUFFER_HIGH_BYTES = 256 * 1024  # above: the connection's streams and reads pause
KICK_S = 10.0  # a reader that is behind and takes no PROGRESS_BYTES in this time is disconnected
BAD_FRAMES = 8  # malformed frames before a connection is closed

# --- processes --------------------------------------------------------------------------------
PROCESSES = 10_000
ENDED = 1_000  # processes that have ended and are not waited for; above: the oldest are removed
ENDED_S = 24 * 3600.0  # such a process is removed after this
COLLECT_RETRY_S = 60.0  # one that could not be removed is tried again after this
TITLE_CHARS = 60  # of what a user said first, shown by `ps`
TITLE_PAGES = 16  # in which that is looked for
NICE_MIN, NICE_MAX = -20, 19
NICE_STEP = 1.25  # one step of nice is this factor of weight
NAME_CHARS = 64
PS_ROWS = 1_000  # per reply
KEYS_ROWS = 1_000  # keys per reply
FORKS = 64  # children per fork
BOUNDS = 128  # subjects whose consent a process needs: two a generation
UNNAMED_APP = "unnamed"  # the application of all clients that give no name

# --- memory -----------------------------------------------------------------------------------
PAGE_TOKENS = 256
MESSAGES = 4_096  # per generate
MESSAGE_CHARS = 1_000_000
READ_MEM_BYTES = 512 * 1024  # text per read_mem reply
COMPACT_SHARE = 0.5  # of the window, that a compaction frees at least
PIN_SHARE = 0.5  # of the window, for pinned pages and the system prompt
RECALL_SHARE = 0.25  # of the window, for pages that a request brings back
FAULT_TOKENS = 32  # what bringing a page back costs beside its tokens, about
COMPOSE_TRIES = 6  # to lay out a call within its window
QUESTION_CHARS = 4_000  # of a request, that pages are looked for with
SUMMARY_TOKENS = 160  # of a summary
THRASH_CALLS, THRASH_WINDOWS = 8, 3.0  # so many windows computed again in so many calls: thrashing
DOCUMENT_BYTES = 16 * 1024 * 1024  # one file that is mapped
DOCUMENTS, FOLDER_CHARS = 2_000, 64_000_000  # of a folder that is mapped
SKIPPED = 100  # files of a folder that are named because they hold no text
CUT_CHARS = 200_000  # of a document, cut into pages at once
INDEX_PAGES = 64  # that become vectors at once
INDEX_STRIKES = 2  # times a page alone may end its embedder, before it is refused
INDEX_RETRY_FIRST_S, INDEX_RETRY_LAST_S = 1.0, 300.0  # pauses before an embedder is tried again
INDEX_LAG_S = 60.0  # pages that wait longer for their vectors are a finding of `doctor`
LOAD_VECTORS = 2_000  # of one piece, when a space is handed to the recall process
RECALL_S = 2.0  # a request waits so long for meaning, then words decide
RECALL_FIRST_S = 15.0  # the same for the first request, which the recall process has to start for
RECALL_BOOT_S = 3.0  # after boot, the recall process starts by itself when there are pages
SWEEP_S = 10.0  # after a process was reaped, what indexes keep of its pages is removed
SWEEP_SHARE, SWEEP_MOST_S = 9.0, 120.0  # times as long as that took, before the next; at most
SWEEP_LAST_S = 3600.0  # between two tries of what failed, at most
CHECKERS = 2  # threads that compare all pages of an owner with their indexes
CHECKED_AT_ONCE = 256  # pages
RENEW_S = 600.0  # for new files of vectors
BACK = 100  # pages that are looked at for one request
MATCHES = 300  # pages that the text index tells of one field
MOVES = 10_000  # of a process's pages into the window and out of it, that are remembered
LABELS = 16  # of a page
KEY_CHARS = 200
HITS = 1_000  # pages per search
MAIL = 1_000  # messages that wait in a mailbox
MAIL_CHARS = 500_000
MAIL_DONE_S = 0.1  # messages that were dealt with leave the disk after this
MAIL_WIPE_S = 2.0  # and their bodies leave the write-ahead log after this
OWNER_MAIL_BYTES = 64 * 1024 * 1024  # of all bodies that wait for processes of one owner
MAILBOX_BYTES = 16 * 1024 * 1024  # of the bodies that wait in one mailbox
MATCH_TERMS = 96  # of a question, looked up in the text index
MATCH_TERM_CHARS = 128  # a longer word is not looked up
EXACT_PAGES = 30_000  # up to here every page is scored: as fast as Chroma, and misses none
CANDIDATES = 200  # pages that a search by meaning tells, and that Chroma is asked for
EMBED_CHARS = 8_192  # of a text that becomes a vector by the builtin embedder
EMBED_THREADS = 4  # of the builtin embedder, where the mount does not say
CHROMA_S = 0.1  # a search waits so long for Chroma, then every page is scored
CHROMA_HANG_S = 60.0  # one piece of work of Chroma without an end: its process is killed
CHROMA_RETRY_FIRST_S, CHROMA_RETRY_LAST_S = 1.0, 300.0  # pauses before it is tried again

# --- generate ---------------------------------------------------------------------------------
MAX_TOKENS = 512  # when the caller does not say
TEMPERATURE, TOP_K, TOP_P, MIN_P = 0.7, 40, 0.95, 0.05
SEED_MAX = 2**32 - 2  # llama.cpp takes the next number for none
REPEAT_PENALTY = 1.1  # of `run` and `chat`: small models loop without; programs start at 1
STOPS = 16  # stop strings per call
STOP_CHARS = 256
GRAMMAR_CHARS = 65_536  # a grammar or a JSON schema
GRAMMAR_DEPTH = 100  # groups in groups of a grammar
GRAMMAR_REPEATS = 100_000  # times of one repetition in a grammar
GRAMMAR_S = 10.0  # compiling one
SCHEMA_DIGITS = 100  # of a number in a schema that is a bound
SCHEMA_INTEGER_DIGITS = 18  # of a number in an answer: a signed 64-bit integer holds them
SCHEMA_FRACTION_DIGITS, SCHEMA_EXPONENT_DIGITS = 17, 2
SCHEMA_WAYS = 1_000  # combinations of the alternatives of one value
SCHEMA_PROPERTIES = 1_000  # declared, of one object
SCHEMA_RULES = 20_000  # different kinds of values in one schema
SCHEMA_CHECKS = 1_000_000  # comparisons of parts of one answer with parts of its schema
GRAMMARS = 32  # compiled ones that an engine keeps
LOGPROBS = 20  # alternatives told beside each token
BIASES = 262_144  # of one call: the largest vocabularies
EMBED_TEXTS = 64  # per call; the SDK makes several calls of more
EMBED_TOKENS = 2_048  # of a text that becomes a vector, where the model's window is not smaller
STREAM_TOKENS = 256  # a reader this far behind gets no further quantum

# --- devices ----------------------------------------------------------------------------------
SLOTS = 16  # sequences resident in an engine
WINDOW_TOKENS = 2_048  # per slot
SLOTS_MAX, WINDOW_MAX = 256, 131_072
BATCH_TOKENS = 512  # one engine step when nobody decodes
CHUNK_S = 0.35  # of a step's time for prompts and answers, while somebody answers
CHUNK_TOKENS = 128  # prompt tokens in such a step, until it is known how long they take
CHUNK_MIN_TOKENS = 32  # smaller pieces take as long
PIECE_TOKENS = 128  # of a prompt, in a deterministic engine
LONG_TOKENS = 256  # a longer prompt waits for calls that owe little
SHORT_TOKENS = 64  # a call that owes fewer goes first
AGING_S = 2.0  # a long prompt waits no longer than this for its next piece
QUANTUM_TOKENS = 16  # one grant
SEAT_TOKENS = 4  # one grant when more want to answer than a step seats
PROMPT_QUANTUM_TOKENS = 512  # one grant of a prompt
READY_S = 120.0  # an engine loads within this
HANG_S = 30.0  # granted work without a step for this long: the engine is killed
RESTART_FIRST_S, RESTART_LAST_S = 0.5, 300.0  # pauses before a device is started again
CRASHES = 5  # more deaths in a row: the device has failed; it is tried again all the same
STEADY_S = 60.0  # a device that ran this long: its earlier deaths do not count
DEMAND_S = 5.0  # after a death: a call does not have a failed device started before
TEMPLATE_S = 1.0  # rendering a chat template
TEMPLATE_CHARS = 4_000_000  # what it may produce
POISON_S = 24 * 3600.0  # a call that kills engines is refused for this long
MARKS = 4_096  # suspects and poison that are remembered
PROGRESS_S = 0.1  # between two words about how far a load is
SHOW_S = 0.5  # a load that takes longer is shown to people
UNLOAD_S = 15 * 60.0  # a model that nobody asked for this long is unloaded
PARKED_BYTES = 2 * 1024**3  # saved contexts of stopped calls, per engine
KEPT_BYTES = 1024**3  # saved contexts that prompts may go on from, per engine
SHARE_TOKENS = 32  # a shorter beginning is computed again

# --- endpoints elsewhere ----------------------------------------------------------------------
REMOTE_WINDOW_TOKENS = 8_192  # where neither the mount nor the endpoint says
REMOTE_CONNECT_S = 5.0  # until there is a connection
REMOTE_FIRST_S = 120.0  # from the request to the first token
REMOTE_STALL_S = 60.0  # from token to token, and for every short answer
REMOTE_USAGE_S = 2.0  # from the end of an answer to its usage
REMOTE_RETRIES = 3  # of a request, before its first token
REMOTE_RETRY_FIRST_S, REMOTE_RETRY_LAST_S = 0.5, 8.0  # pauses between them, before jitter
REMOTE_RETRY_AFTER_S = 30.0  # an endpoint that asks for a longer pause is not asked again
REMOTE_LINE_BYTES = 256 * 1024  # one line of a stream, one event
REMOTE_ANSWER_BYTES = 256 * 1024 * 1024  # a whole stream
REMOTE_BODY_BYTES = 16 * 1024 * 1024  # an answer that is no stream
REMOTE_TOKEN_CHARS = 128  # a piece of answer longer than this counts as several tokens
REMOTE_WORDS_CHARS = 300  # of an endpoint's complaint
EMBED_DIMENSIONS = 65_536
SECRET_BYTES = 1_024

# --- images -----------------------------------------------------------------------------------
GGUF_KEYS = 4_096
GGUF_TENSORS = 65_536
GGUF_STRING_BYTES = 1024 * 1024
GGUF_ARRAY_ITEMS = 4_194_304
GGUF_HEADER_BYTES = 256 * 1024 * 1024

# --- policy -----------------------------------------------------------------------------------
DECISIONS = 20_000  # cached static decisions
RULES = 100_000  # rows of all files
RULE_CHARS = 400  # one row
OBJECT_CHARS = 400  # one path
POLICY_CHARS = 700_000  # one file that comes over the socket
POLICY_ROWS = 500  # rules per reply
POLICY_UNDO = 10  # earlier files that are kept
DIFFERENCES = 500  # told of a change or a simulation, of each kind
RECORDED = 100_000  # recorded calls that a simulation looks at
SLICE_S = 0.0005  # a reload gives way to traffic this often

# --- store and journal ------------------------------------------------------------------------
REFUSAL_ROWS = 20  # refusals of one subject that are listed at once, the others are counted
USER_REFUSAL_ROWS = 100  # and of all subjects of a user, and of all strangers
REFUSAL_S = 20.0  # after this, so many can be listed again
REFUSAL_SAME_S = 60.0  # a refusal that repeats one that is listed is counted for this long
REFUSALS_SAME = 256  # listed refusals of a user that are remembered for that
REFUSAL_SUBJECTS = 64  # subjects of a user whose refusals are counted apart
REFUSAL_COUNT_S = 10.0  # the count of those that were not listed is written this often
JOURNAL_SHARES = 4  # users have equal parts of half of the journal, one of so many at most
COUNTER_ROWS = 1_000  # kinds of class C calls of one user that are counted apart in an hour
NOTE_CHARS = 200  # of an error, in the journal
CALL_BLOCK = 65_536  # call numbers that are reserved ahead: a crash skips so many at most
CALLS_SKIPPED = 2**32  # call numbers, when it is not known any more which ones are reserved
PID_BLOCK = 64  # the same of pids
MAIL_BLOCK = 1_024  # and of messages, for each owner
COMMIT_ROWS = 64  # a group commit takes at most this many writes
OWNER_WRITERS = 4  # threads that write to the databases of owners, each to one at a time
OWNER_SLICES = 2  # of them, that work on pieces of long work at most
SLICE_ROWS = 64  # rows of an owner that one piece of long work changes
MERGE_PAGES = 64  # of a text index that one piece of a merge writes, about 4 KB each
OWNER_READERS = 1  # threads that read one database at once: it has one connection for reading
SEGMENT_BYTES = 64 * 1024 * 1024
JOURNAL_BYTES = 1024 * 1024 * 1024
FREE_BYTES = 64 * 1024 * 1024  # below: only reads and removals
START_BYTES = 4 * 1024 * 1024  # below: SQLite could not even open its files
COUNTER_S = 10.0  # counters of class C calls reach the journal this often
COUNTER_HOURS = 90 * 24  # counters of class C calls are kept this long
WATCH_EVENTS = 1_024  # a follower this far behind gets a gap marker
WATCH_BATCH = 256  # events per frame

# --- daemon -----------------------------------------------------------------------------------
IDLE_EXIT_S = 15 * 60.0  # a private daemon without processes leaves after this
DRAIN_S = 10.0  # calls in flight at SIGTERM get this long
GARBAGE_S = 60.0  # between two full passes of Python's collector, when nothing is asked
JOB_RETRY_FIRST_S, JOB_RETRY_LAST_S = 0.5, 300.0  # pauses before a failed background job runs again
JOB_STEADY_S = 60.0  # a job that ran this long begins with the first pause again
JOBS_ENDED = 20  # ended background jobs that had failed, that are remembered
JOB_ROWS = 100  # background jobs per `stat`
START_S = 30.0  # a client waits this long for the daemon that it started
