"""The values of `format` that are enforced; any other format is an annotation.

The expressions have a maximum length and need no escape in JSON. They are slightly narrower than
their standards, as many programs are: no leap seconds, no address in brackets.
"""

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"  # years
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|"
    "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|"
    f"{_LEAP}-02-29)"
)
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
    "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_COUNT = "[0-9]{1,6}"
_SECONDS = rf"{_COUNT}(?:\.{_COUNT})?S"
_CLOCK = f"T(?:{_COUNT}H(?:{_COUNT}M)?(?:{_SECONDS})?|{_COUNT}M(?:{_SECONDS})?|{_SECONDS})"
_DAYS = f"(?:{_COUNT}Y(?:{_COUNT}M)?(?:{_COUNT}D)?|{_COUNT}M(?:{_COUNT}D)?|{_COUNT}D)"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_GROUP = "[0-9a-fA-F]{1,4}"
_IPV6 = (
    "(?:"
    + "|".join(
        [f"(?:{_GROUP}:){{7}}{_GROUP}", f"(?:{_GROUP}:){{1,7}}:"]
        + [f"(?:{_GROUP}:){{1,{7 - n}}}(?::{_GROUP}){{1,{n}}}" for n in range(1, 7)]
        + [f":(?:(?::{_GROUP}){{1,7}}|:)"]
    )
    + ")"
)
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,8}}"
_ATOM = r"[a-zA-Z0-9!#$%&'*+\/=?^_`{|}~-]{1,64}"
_CHAR = r"(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
_PATH = rf"(?:\/{_CHAR}{{0,256}}){{0,32}}"
_PORT = "(?::(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}))?"
_TAIL = rf"(?:\?(?:{_CHAR}|[\/?]){{0,512}})?(?:#(?:{_CHAR}|[\/?]){{0,256}})?"
_UUID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-%s[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P(?:{_DAYS}(?:{_CLOCK})?|{_CLOCK}|{_COUNT}W)",
    "email": rf"{_ATOM}(?:\.{_ATOM}){{0,4}}@{_LABEL}(?:\.{_LABEL}){{1,8}}",
    "hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "ipv4interface": rf"{_IPV4}\/(?:3[0-2]|[12]?[0-9])",
    "ipv6interface": rf"{_IPV6}\/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9])",
    "ipvanyaddress": f"(?:{_IPV4}|{_IPV6})",
    "uri": rf"[a-zA-Z][a-zA-Z0-9+.-]{{0,31}}:(?:\/\/{_HOST}{_PORT}{_PATH}|{_CHAR}{{1,256}}){_TAIL}",
    "uuid": _UUID % "[0-9a-fA-F]",
    **{f"uuid{version}": _UUID % str(version) for version in range(1, 9)},
}
