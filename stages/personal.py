"""Personal data and secrets masked: e-mail addresses, telephone numbers, IP addresses, keys.

What is found is what has a shape: names, postal addresses and birthdays stay. Telephone numbers are those that
`phonenumbers` (Google's libphonenumber) takes for valid: international ones (+49 …), and North American ones written
with separators. A version number of four parts looks like an IP address, and is masked. Costs about 0.1 µs a
character for all four, more for text full of digits.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from sys import maxsize

from phonenumbers import Leniency, PhoneNumberMatcher

Found = tuple[int, int]  # where it begins and ends

# Patterns begin with what is rare, without a look behind: that is what makes them fast.
_EMAIL = re.compile(r"[^\W_][\w.+%-]{0,63}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}")
_IPV4 = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?:[0-9A-Fa-f]{1,4}:|::)[0-9A-Fa-f:.]{1,43}(?![\w:])")
_DOTS, _COLONS = re.compile(r"\.\d{1,3}\.\d"), re.compile(r":[0-9A-Fa-f:]")  # quickly found, and often not there
_SEVEN_DIGITS = re.compile(r"\d(?:[^\d\n]{0,4}\d){6}")  # fewer make no telephone number
_GAP = re.compile(r"\d\D+(?=\d)")
_BEGIN, _END = (rf"-----{word} (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----" for word in ("BEGIN", "END"))
_TOKENS = (  # beginnings and lengths as their makers document them, or as they are seen
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",  # AWS
    r"gh[opsru]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}",  # GitHub
    r"xox[abeoprs]-[A-Za-z0-9-]{10,250}|xapp-[A-Za-z0-9-]{10,250}",  # Slack
    r"AIza[A-Za-z0-9_-]{35}|GOCSPX-[A-Za-z0-9_-]{28}|ya29\.[A-Za-z0-9_-]{20,500}",  # Google
    r"eyJ[A-Za-z0-9_-]{8,9999}\.eyJ[A-Za-z0-9_-]{8,9999}\.[A-Za-z0-9_-]{8,9999}",  # JWT (RFC 7519): {"… in Base64
)
_MARKS = (  # one of which a token holds
    *("AKIA", "ASIA", "ABIA", "ACCA", "gho_", "ghp_", "ghr_", "ghs_", "ghu_", "github_pat_"),
    *("xox", "xapp-", "AIza", "GOCSPX-", "ya29.", "eyJ"),
)
_BLOCK = re.compile(rf"{_BEGIN}(?:[^-]|-(?!----)){{0,20000}}{_END}|{_BEGIN}(?:\s*[A-Za-z0-9+/=]{{40,}})+")
_TOKEN = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(_TOKENS)})")
# api_key = …, "secret_key": "…": the value alone, where it has a digit and a letter and is too long to be a word.
_ASSIGNED = re.compile(r"[:=]\s{0,3}[\"']?(?P<value>[A-Za-z0-9_+/=.~-]{16,512})")
_NAME = re.compile(
    r"(?:api|secret|access|private|auth)[_ -]?(?:access[_ -]?)?(?:key|token)[\"']?\s{0,3}\Z", re.IGNORECASE
)
_NAME_CHARACTERS = 40  # at most, of a name before its value
_HAS_DIGIT_AND_LETTER = re.compile(r"(?=.*?\d)(?=.*?[A-Za-z])")


def _emails(text: str) -> Iterator[Found]:
    if "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text))


def _addresses(text: str) -> Iterator[Found]:
    if _COLONS.search(text):
        whole = [match for match in _IPV6.finditer(text) if not _follows(text, match.start(), ":.")]
        found = [(match.start(), match.start() + len(_ipv6(match[0]))) for match in whole]
        if found := [(start, end) for start, end in found if end > start]:
            yield from found
            return  # one of the fourth version may stand in one of the sixth
    for match in _IPV4.finditer(text) if _DOTS.search(text) else ():
        if _is_address(match[0]) and not _follows(text, match.start(), "."):
            yield match.span()


def _follows(text: str, place: int, characters: str) -> bool:
    """Whether something that begins at `place` goes on what stands before: a word, or one of `characters`."""
    before = text[place - 1 : place]
    return before.isalnum() or (before != "" and before in f"_{characters}")


def _ipv6(written: str) -> str:
    """The address at the beginning of what holds nothing but its characters, or nothing."""
    for address in (written, written.rstrip(".:")):
        if address.count(":") > 1 and any(map(str.isdigit, address)) and _is_address(address):
            return address
    return ""


def _is_address(written: str) -> bool:
    try:
        ip_address(written)
    except ValueError:
        return False
    return True


def _phones(text: str) -> Iterator[Found]:
    if not _SEVEN_DIGITS.search(text):
        return
    for match in PhoneNumberMatcher(text, "US", leniency=Leniency.STRICT_GROUPING, max_tries=maxsize):
        # Ten digits in a row, and 1-2147483646, are more often something else.
        if match.raw_string.startswith("+") or len(_GAP.findall(match.raw_string)) > 1:
            yield match.start, match.end


def _keys(text: str) -> Iterator[Found]:
    if "-----BEGIN" in text and (places := [match.span() for match in _BLOCK.finditer(text)]):
        yield from places
        return  # places of two patterns could overlap: the next round looks for the others
    if any(mark in text for mark in _MARKS) and (places := [match.span() for match in _TOKEN.finditer(text)]):
        yield from places
        return
    for match in _ASSIGNED.finditer(text):
        name = text[max(match.start() - _NAME_CHARACTERS, 0) : match.start()]
        if _HAS_DIGIT_AND_LETTER.match(match["value"]) and _NAME.search(name):
            yield match.span("value")


_FINDERS: dict[str, Callable[[str], Iterator[Found]]] = {  # in the order in which they look
    "key": _keys,
    "email": _emails,
    "ip": _addresses,
    "phone": _phones,
}


class Masked:
    """A text in which what `kinds` (email, phone, ip, key) name is replaced by <EMAIL>, <PHONE>, <IP>, <KEY>.

    Looks until nothing is found any more, so that masking `text` again changes nothing. `counts`: kind → how many.
    """

    def __init__(self, text: str, kinds: Sequence[str]) -> None:
        self.text = text
        self.counts: Counter[str] = Counter()
        self._steps: list[tuple[str, list[Found]]] = []
        while sum([self._replace(kind) for kind in _FINDERS if kind in kinds]):
            pass

    def _replace(self, kind: str) -> int:
        found = list(_FINDERS[kind](self.text))
        if found:
            parts, last = list[str](), 0
            for start, end in found:
                parts += [self.text[last:start], f"<{kind.upper()}>"]
                last = end
            self.text = "".join([*parts, self.text[last:]])
            self.counts[kind] += len(found)
            self._steps.append((f"<{kind.upper()}>", found))
        return len(found)

    def place(self, start: int, end: int) -> Found:
        """Where in `text` stands what stood in the original from `start` to `end`, with all of a mask in its place."""
        for mask, found in self._steps:
            start, end = _moved(start, end, mask, found)
        return start, end


def _moved(start: int, end: int, mask: str, found: list[Found]) -> Found:
    before = grown = 0  # characters that the text became longer, before the place and in it
    first, last = start, end
    for begin, stop in found:
        if stop <= start:
            before += len(mask) - (stop - begin)
        elif begin < end:
            grown += len(mask) - (stop - begin)
            first, last = min(first, begin), max(last, stop)
    return first + before, last + before + grown
