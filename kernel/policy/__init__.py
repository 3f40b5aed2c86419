"""The gate: may this caller do this to that object? Default deny; deny beats ask beats allow.

rules.py is the language and its mistakes, judge.py hosts Casbin, own.py is the owner's file, and
gate.py is what the trap asks.
"""

from .gate import ITSELF as ITSELF
from .gate import Decision as Decision
from .gate import Policy as Policy
from .gate import about as about
from .gate import model as model
from .judge import Judge as Judge
from .judge import Plain as Plain
from .judge import Ruling as Ruling
from .own import OwnFile as OwnFile
from .rules import Rule as Rule
from .rules import canonical as canonical
from .rules import own as own
from .rules import under as under
