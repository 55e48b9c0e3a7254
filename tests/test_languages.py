"""Languages: known sentences, only what the middle says, and no network."""

import subprocess
import sys
from pathlib import Path

import pytest
from preparing import letters, records, run, write

from lightning_modules.errors import PipelineError
from stages.languages import check_languages, language_of

ROOT = Path(__file__).parents[1]
# Article 1 of the Universal Declaration of Human Rights.
SENTENCES = {
    "en": "All human beings are born free and equal in dignity and rights.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_known_sentences(language: str) -> None:
    for text in (SENTENCES[language], f"{SENTENCES[language]}\n{SENTENCES[language]}"):
        found = language_of(text)
        assert found.language == language
        assert 0.5 < found.probability <= 1


def test_a_long_text_is_what_its_middle_is() -> None:
    middle = "\n".join([SENTENCES["de"]] * 40)
    menu = "Home Products About us Contact " * 30
    assert language_of(f"{menu}\n{middle}\n{menu}").language == "de"


def test_nothing_is_loaded_from_the_network() -> None:
    code = """
import sys
def watch(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(event)
sys.addaudithook(watch)
from stages.languages import language_of
print(language_of("Alle Menschen sind frei und gleich.").language)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "de\n"), done.stderr


def test_a_code_that_is_never_found_is_an_error() -> None:
    check_languages(["en", "de", "zh", "nds"])
    with pytest.raises(PipelineError, match=r"prepare\.languages: 'eng' is no language that can be found"):
        check_languages(["en", "eng"])


def test_prepare_drops_other_languages_from_pretraining_alone(tmp_path: Path) -> None:
    texts = [f"{letters(n)}: {sentence}" for n in range(20) for sentence in SENTENCES.values()]
    write(tmp_path / "raw/mine/a.txt", "\n".join(texts))
    pairs = {"source": "mine", "target": "mine", "reader": "parallel"}
    data = {"pretraining": [{"source": "mine", "reader": "text", "split": "line"}], "translation": [pairs]}
    report = run(tmp_path, data, languages=["en", "de"])
    assert report["pretraining"]["mine"]["dropped"]["languages"] == 20 * (len(SENTENCES) - 2)
    kept = {record["text"] for record in records(tmp_path, "pretraining")}
    assert kept == {text for text in texts if SENTENCES["en"] in text or SENTENCES["de"] in text}
    assert {record["source"] for record in records(tmp_path, "translation")} == set(texts)
    with pytest.raises(PipelineError, match=r"no record is left after the filters; languages dropped 140: see prepare"):
        run(tmp_path, {"pretraining": data["pretraining"]}, languages=["it"])
