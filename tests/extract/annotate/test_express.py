"""Sentences from facts: unique, necessary and clear by program, the rest for a person, and the benchmark's mix."""

import csv
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from extract.annotate.cli import main
from extract.annotate.records import ProjectFolder
from extract.annotate.sentences.clip_sentences import Sentence, clip_sentences
from extract.annotate.sentences.expressing import SHARES, ask, express
from extract.annotate.sentences.facts import Told, checked, clip_facts, situation, sound, state
from refavs.data.cues import parse
from refavs.errors import ConfigError
from refavs.expressions.footage import FOOTAGE, ClassTemplate
from refavs.expressions.templates import expressions
from tests.extract.annotate.small_project import make_project

# Two drums above each other and a man below them, who leaves.
SAID: dict[int, Told] = {
    1: {"colour": "red", "surface": "wooden", "verb": "-", "sound": "0-10@-20", "rhythm": "90"},
    2: {"colour": "blue", "surface": "-", "verb": "-", "sound": "4-10@-6", "rhythm": "150"},
    3: {"colour": "-", "surface": "-", "verb": "hitting:1; singing", "look": "in a red t-shirt", "sound": "silent",
        "place": "near:1"},
}  # fmt: skip


def told_project(folder: Path, clips: tuple[str, ...] = ("one",), **changes: Told) -> ProjectFolder:
    project = make_project(folder / "project", clips=clips)
    for clip_id in clips:
        state(project.clip(clip_id), {fid: facts | changes.get(f"fid_{fid}", {}) for fid, facts in SAID.items()})
    return project


def said_of(project: ProjectFolder, clip_id: str = "one") -> dict[str, tuple[int, tuple[str, ...]]]:
    """Everything that may be said: object and unknown facts by sentence."""
    files = project.clip(clip_id)
    found = expressions(situation(files.masks(), files.scenes(), clip_facts(files)), FOOTAGE)
    return {one.text: (one.target + 1, one.unsure) for one in found}


def test_sentences_name_one_object_of_several_of_a_category(tmp_path: Path) -> None:
    said = said_of(told_project(tmp_path))
    assert said["The red drum."] == (1, ()) and said["The wooden drum."] == (1, ())
    assert said["The drum above the drum."] == (1, ()) and said["The drum beneath the drum."] == (2, ())
    assert said["The object making the loudest sound."] == (2, ())
    assert said["The first object to make a sound."] == (1, ())
    assert said["The object making the fastest rhythm."] == (2, ())
    assert said["The drum making longer sound duration than the drum."] == (1, ())
    assert said["The old man."] == (3, ())
    assert "The drum." not in said, "it fits two"


@pytest.mark.parametrize("text", [
    "The sounding drum.",  # both sound
    "The sounding old man.", "The old man singing.", "The old man in a red t-shirt.",  # there is one man
    "The drum appearing longer than the drum.",  # both stay
])  # fmt: skip
def test_sentences_with_a_needless_or_ambiguous_cue_are_left_out(text: str, tmp_path: Path) -> None:
    assert text not in said_of(told_project(tmp_path))


def test_the_sounding_drum_needs_a_silent_one(tmp_path: Path) -> None:
    said = said_of(told_project(tmp_path, fid_2={"sound": "silent"}))
    assert said["The sounding drum."] == (1, ()) and "The red and sounding drum." not in said
    assert "The object making the loudest sound." not in said, "only one sounds"


@pytest.mark.parametrize(("level", "clear"), [("-6", True), ("-15", False)])
def test_a_comparison_needs_a_clear_difference(level: str, clear: bool, tmp_path: Path) -> None:
    said = said_of(told_project(tmp_path, fid_2={"sound": f"0-10@{level}"}))
    assert ("The object making the loudest sound." in said) == clear


def test_an_unknown_fact_of_another_object_makes_a_sentence_unsure(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    state(project.clip("one"), {1: {"colour": "red", "sound": "0-10"}, 2: {"sound": "0-10"}, 3: {"sound": "silent"}})
    state(project.clip("two"), {1: {"sound": "0-10@-3"}})
    assert said_of(project)["The red object."] == (1, ("colour",))
    assert said_of(project, "two")["The sounding object."] == (1, ("sound",))


def test_facts_of_one_object_are_added_to_and_replaced(tmp_path: Path) -> None:
    files = make_project(tmp_path / "project").clip("one")
    state(files, {1: {"colour": "red", "class": "snare"}})
    state(files, {1: {"colour": "blue"}, 2: {"colour": "-"}})
    assert clip_facts(files).told == {1: {"colour": "blue", "class": "snare"}, 2: {"colour": "-"}}
    found = situation(files.masks(), files.scenes(), clip_facts(files))
    assert [item.category for item in found.objects] == ["snare", "drum", "old man"]
    assert found.unknown["colour"] == {2}


@pytest.mark.parametrize(("column", "text"), [
    ("sound", "loud"), ("sound", "4-2"), ("sound", "0-4;3-5"), ("sound", "0-4@x"), ("rhythm", "fast"), ("rhythm", "0"),
    ("verb", "holding:9"), ("verb", "holding:x"), ("place", "near"), ("place", "inside:2"), ("colour", "re[d]"),
])  # fmt: skip
def test_a_fact_that_cannot_be_used_costs_one_line(column: str, text: str) -> None:
    good, odd = checked({column: text, "class": "drum"}, {1, 2})
    assert good == {"class": "drum"} and len(odd) == 1 and text in odd[0]


def test_sound_is_read_in_seconds_and_decibels() -> None:
    found = sound("0-4@-20; 6-10@-20..0")
    assert found is not None and found.spans == ((0, 4), (6, 10)) and found.intermittent
    assert (found.gain_from, found.gain_to) == (pytest.approx(0.1), 1) and found.duration_s == 8
    assert sound("silent") is None and sound("-") is None


def test_patterns_are_graded_as_their_words_say(tmp_path: Path) -> None:
    """The grades of the benchmark's own sentences come from the words; both must agree."""
    uncertain = {"The [surface] [object] that makes [volume] sound than the [object.2].",
                 "The [surface] [object] that makes the sound with rhythm [rhythm] than the [object.2]."}  # fmt: skip
    words = {"object": "man", "person": "woman", "object.2": "guitar", "spatial": "on the left of", "surface": "red",
             "look": "in a red t-shirt", "verb": "playing", "time": "first", "sequence": "before", "duration": "longer",
             "volume": "louder", "rhythm": "faster", "rhythm sup": "fastest", "continuity": "continuous",
             "volume sup": "loudest", "duration sup": "longest", "color": "red"}  # fmt: skip
    for template in FOOTAGE:
        text = re.sub(r"\[([^]]*)\]", lambda found: words[found[1]], template.pattern)
        cues = parse(text)
        assert cues.dimension == template.dimension, text
        if template.pattern not in uncertain:
            assert cues.grade == template.grade, text
    assert sum(isinstance(template, ClassTemplate) for template in FOOTAGE) >= 18


# The command.


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def facts_file(folder: Path, rows: list[str]) -> Path:
    path = folder / "facts.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


FACT_ROWS = [
    "clip,fid,class,colour,verb,sound", "one,1,,red,-,0-10@-20", "one,2,,blue,-,4-10@-6", "one,3,,-,singing,silent",
    "two,1,,green,-,0-10@-20", "two,2,,white,-,silent", "two,3,,-,-,silent",
]  # fmt: skip


def test_express_makes_sentences_from_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = make_project(tmp_path / "project")
    assert main(["express", str(project.path), "--facts", str(facts_file(tmp_path, FACT_ROWS))]) == 0
    found = [*clip_sentences(project.clip("one")), *clip_sentences(project.clip("two"))]
    about = [one for one in found if one.fid is not None]
    assert len(about) == 12 and len({one.uid for one in found}) == len(found)
    assert {one.uid.rsplit("_", 2)[0] for one in about} == {"one", "two"}
    assert {one.uid.rsplit("_", 1)[0] for one in about if one.fid == 3} <= {"one_old-man", "two_old-man"}
    said = capsys.readouterr().out
    assert "12 sentences about objects" in said and "acoustic+temporal" in said
    queued = rows_of(project.path / "review.csv")
    assert all(row["question"] and not row["answer"] for row in queued)
    assert {row["uid"] for row in queued} == {one.uid for one in found if one.status == "queued"}


def test_nulls_wait_for_a_person_and_come_in_three_kinds(tmp_path: Path) -> None:
    clips = tuple(f"clip{number}" for number in range(8))
    project = told_project(tmp_path, clips)
    other = make_project(tmp_path / "other", clips=("zoo",), names=("dog", "cat", "cow"))
    (other.clip("zoo").folder).rename(project.clip("zoo").folder)
    state(project.clip("zoo"), SAID)
    found = express(project, [*clips, "zoo"], 6, 0.4, {})
    nothing = [one for one in found if one.fid is None]
    assert {one.sound for one in nothing} == {"own", "muted", "crossed"}
    assert all(one.status == "queued" and "refer to nothing" in one.reason for one in nothing)
    assert {one.uid.split("-")[0] for one in nothing} == {"null_s", "null_m", "null_c"}
    assert {one.donor for one in nothing if one.sound == "crossed"} <= {"zoo", *clips}
    assert all("acoustic" in one.dimension for one in nothing if one.sound != "own")
    assert sum(one.fid is None for one in found) / len(found) <= 0.4


def test_the_mix_follows_the_real_benchmark(tmp_path: Path) -> None:
    clips = tuple(f"clip{number}" for number in range(30))
    found = express(told_project(tmp_path, clips), clips, 3, 0.0, {})
    mix = Counter(one.dimension for one in found)
    for dimension, share in SHARES.items():
        assert abs(mix[dimension] / len(found) - share) < 0.04, mix
    assert len({one.template for one in found}) >= 10


def test_grades_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = told_project(tmp_path)
    grades = tmp_path / "grades.csv"
    grades.write_text('template,grade\nThe sounding [object].,3\n"The [surface] [object].",2\n')
    assert main(["express", str(project.path), "--grades", str(grades), "--per-clip", "50"]) == 0
    found = {one.text: one.grade for one in clip_sentences(project.clip("one"))}
    assert found["The red drum."] == 2
    odd = {"The soundng [object].,3": "did you mean 'The sounding [object].'?", "The [object].,9": "accepted: 1 to 5"}
    for text, said in odd.items():
        grades.write_text(f"template,grade\n{text}\n")
        assert main(["express", str(project.path), "--grades", str(grades)]) == 2
        assert said in capsys.readouterr().err


def test_rows_of_facts_that_cannot_be_used_cost_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = make_project(tmp_path / "project")
    rows = [*FACT_ROWS, "three,1,,red,-,", "one,7,,red,-,", "one,1,,red,-,loud"]
    rows[0] = rows[0].replace("verb", "vreb")
    assert main(["express", str(project.path), "--facts", str(facts_file(tmp_path, rows))]) == 3
    said = capsys.readouterr().err
    for line in ("column 'vreb' is not used; did you mean 'verb'?", "row 7: there is no clip 'three'",
                 "row 8: clip 'one' has no object '7'", "row 9: sound is 'loud'"):  # fmt: skip
        assert line in said
    assert clip_sentences(project.clip("one"))


def test_answers_are_taken_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = told_project(tmp_path, ("one", "two"), fid_3={"class": "old man", "surface": "young"})
    express(project, ["one", "two"], 6, 0.3, {})
    assert main(["express", str(project.path), "--nulls", "0.3"]) == 0
    review = project.path / "review.csv"
    rows = rows_of(review)
    assert len(rows) >= 3
    rows[0] |= {"answer": "yes", "exp": "Another wording."}
    rows[1]["answer"] = "No"
    free = {"uid": "", "clip": "one", "fid": "2", "exp": "The drum that nobody hits.", "question": "", "answer": ""}
    with review.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(free))
        writer.writeheader()
        writer.writerows([*rows, free])
    assert main(["express", str(project.path)]) == 2
    assert "has answers; take them first" in capsys.readouterr().err
    assert main(["express", str(project.path), "--review", str(review)]) == 0
    assert "1 accepted, 1 rejected" in capsys.readouterr().out

    def by_uid() -> dict[str, Sentence]:
        return {one.uid: one for clip in ("one", "two") for one in clip_sentences(project.clip(clip))}

    for _ in range(2):  # the second time after a new run
        found = by_uid()
        assert (found[rows[0]["uid"]].status, found[rows[0]["uid"]].text) == ("accepted", "Another wording.")
        assert found[rows[1]["uid"]].status == "rejected"
        (added,) = [one for one in found.values() if one.text == "The drum that nobody hits."]
        assert (added.fid, added.status, added.by, added.dimension) == (2, "accepted", "person", "semantic")
        assert rows[0]["uid"] not in {row["uid"] for row in rows_of(review)}
        assert main(["express", str(project.path), "--nulls", "0.3"]) == 0
    assert "The drum that nobody hits." not in {row["exp"] for row in rows_of(review)}


def test_answers_that_cannot_be_used_stay_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = told_project(tmp_path, ("one", "two"))
    express(project, ["one", "two"], 6, 0.3, {})
    review = tmp_path / "mine.csv"
    review.write_text("uid,clip,fid,exp,question,answer\nx_y_1,one,1,A,,yes\n,none,1,A,,\n,one,9,A,,\n,one,1,,,\n")
    before = clip_sentences(project.clip("one"))
    assert main(["express", str(project.path), "--review", str(review)]) == 3
    said = capsys.readouterr().err
    for line in ("row 1: there is no sentence 'x_y_1'", "row 2: there is no clip 'none'",
                 "row 3: the clip has no object '9'", "row 4: it has no sentence"):  # fmt: skip
        assert line in said
    assert clip_sentences(project.clip("one")) == before


def test_missing_facts_are_asked_for(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", clips=("one",))
    state(project.clip("one"), {1: {name: "-" for name in ("class", "colour", "surface", "look", "verb", "place")}})
    replies = iter(["loud", "0-10@-3", "", *[""] * 16])
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return next(replies)

    ask(project, ["one"], answer)
    assert asked[:3] == ["one, object 1 (drum), sound: "] * 2 + ["one, object 1 (drum), rhythm: "]
    assert clip_facts(project.clip("one")).told[1]["sound"] == "0-10@-3"
    assert next(replies, None) is None

    def nobody(question: str) -> str:
        raise EOFError

    with pytest.raises(ConfigError, match="has nobody to answer"):
        ask(project, ["one"], nobody)


def test_a_clip_of_one_object_has_a_sentence_for_a_person(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", names=("drum",), clips=("one",))
    (found,) = express(project, ["one"], 6, 0.0, {})
    assert (found.text, found.status, found.fid) == ("The drum.", "queued", 1)
    assert replace(found, uid="").key == (1, "The drum.", "own")


def test_subjective_words_are_for_a_person(tmp_path: Path) -> None:
    project = told_project(tmp_path, fid_1={"surface": "old"})
    found = {one.text: one for one in express(project, ["one"], 50, 0.0, {})}
    assert found["The old drum."].status == "queued" and "matter of taste" in found["The old drum."].reason
    assert found["The red drum."].status == "accepted"


def test_objects_that_never_show_are_not_spoken_of(tmp_path: Path) -> None:
    project = told_project(tmp_path)
    files = project.clip("one")
    masks = files.masks()
    hidden = replace(masks.objects[1], seconds=tuple(replace(each, rle=None) for each in masks.objects[1].seconds))
    files.write(replace(masks, objects=(masks.objects[0], hidden, masks.objects[2])))
    found = {one.text: one.fid for one in express(project, ["one"], 50, 0.0, {})}
    assert set(found.values()) == {1, 3} and found["The drum."] == 1 and "The red drum." not in found
