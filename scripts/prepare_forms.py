"""The official annotation files of each dataset, and trees of one's own, as a ``Plan``."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from data import DataError, DatasetConfig, load_dataset_config
from data.messages import one_line, shown
from scripts.prepare_plan import (
    Clip,
    Inputs,
    Lists,
    Place,
    Plan,
    clip_path,
    entries_of,
    json_of,
    label_of,
    lines_of,
    numbered,
    records_of,
    seconds,
    whole,
)

ALPHABETICAL = "alphabetical by class name (code points)"
Labelled = list[tuple[str, int]]


def _plan(config: DatasetConfig, clips: dict[str, Clip], lists: list[Lists], **rest: object) -> Plan:
    """A plan whose folders and names are those of ``data/<name>.yaml``."""
    return Plan(clips, lists, Path(config.root).name, config.image_tmpl, **rest)


def _lists(config: DatasetConfig, train: Labelled, val: Labelled, names: list[str] | None, published: dict) -> Lists:
    files = Path(config.train_list).name, Path(config.val_list).name
    number = len(names) if names else config.num_classes
    return Lists(config.name, f"{config.name}.yaml", *files, train, val, number, names, published)


def _add(clips: dict[str, Clip], path: str, where: str, *places: Place) -> str:
    clips.setdefault(clip_path(path, where), Clip(path, places or (Place(path),), where))
    return path


def _stem(file: str) -> str:
    return re.sub(r"\.\w+$", "", file)


def something_v1(inputs: Inputs) -> Plan:
    """``*-labels.csv`` (a name a line), ``*-train.csv`` and ``*-validation.csv`` (``id;name``); frames."""
    names_file = inputs.find("list of class names", "*v1-labels.csv", "labels.csv")
    files = [
        inputs.find("list of training videos", "*v1-train.csv", "train.csv"),
        inputs.find("list of validation videos", "*v1-validation.csv", "validation.csv", "val.csv"),
    ]
    names = sorted({name for _, name in lines_of(names_file)})

    def videos_of(file: Path) -> Iterator[tuple[str, str, str]]:
        for where, line in lines_of(file):
            number, mark, name = line.partition(";")
            if not mark:
                raise DataError(f"{where}: {shown(line)} is not 'id;class name'; is this the official file?")
            yield where, number, name.strip()

    counts = {"train": 86_017, "val": 11_522}
    return _something("V1", names_file, names, files, videos_of, counts, frames_given=True)


def something_v2(inputs: Inputs) -> Plan:
    """``*labels.json`` (name: id), ``*train.json`` and ``*validation.json``; the class is the template without []."""
    names_file = inputs.find("list of class names", "*v2-labels.json", "labels.json")
    files = [
        inputs.find("list of training videos", "*v2-train.json", "train.json"),
        inputs.find("list of validation videos", "*v2-validation.json", "validation.json"),
    ]
    names = sorted(json_of(names_file, dict))

    def videos_of(file: Path) -> Iterator[tuple[str, str, str]]:
        for where, entry in entries_of(file, id=str, template=str):
            yield where, entry["id"], re.sub(r"[\[\]]", "", entry["template"])

    return _something("V2", names_file, names, files, videos_of, {"train": 168_913, "val": 24_777})


def _something(
    version: str,
    names_file: Path,
    names: list[str],
    files: list[Path],
    videos_of: Callable[[Path], Iterator[tuple[str, str, str]]],
    published: dict[str, int],
    frames_given: bool = False,
) -> Plan:
    """A version of Something-Something.

    ``videos_of`` gives the place in the file, the id and the class name of each video of a list file.
    """
    labels, clips, splits = {name: i for i, name in enumerate(names)}, {}, []
    for file in files:
        videos = []
        for where, number, name in videos_of(file):
            videos.append((_add(clips, number, where), label_of(name, labels, where, names_file)))
        splits.append(videos)
    config = load_dataset_config(f"something_{version.lower()}")
    return _plan(
        config,
        clips,
        [_lists(config, *splits, names, published)],
        label_version=f"Something-Something {version}",
        class_order=ALPHABETICAL,
        forms=[names_file, *files],
        frames_given=frames_given,
        notes=_compare_names(names, config),
    )


def _compare_names(names: list[str], config: DatasetConfig) -> list[str]:
    if names == config.categories:
        return []
    return [
        f"warning: the {len(names)} class names are not the {config.num_classes} published ones, "
        "so labels of other copies and released classifiers do not fit"
    ]


def diving48(inputs: Inputs) -> Plan:
    """``Diving48_V2_train.json`` and ``_test.json``, or those without V2; ``Diving48_vocab.json`` for names."""
    version = "V2" if inputs.find_all("Diving48_V2_train.json") else "V1"
    middle = "_V2" if version == "V2" else ""
    files = [inputs.find(f"list of {split} videos", f"Diving48{middle}_{split}.json") for split in ("train", "test")]
    vocabulary = inputs.find("vocabulary", "Diving48_vocab.json", needed=False)
    config = load_dataset_config("diving48")
    names, notes = None, []
    if vocabulary:
        entries = json_of(vocabulary, list)
        names = numbered([" ".join(map(str, entry)) if isinstance(entry, list) else str(entry) for entry in entries])
    else:
        notes.append("note: no Diving48_vocab.json, so classes have no names and a flip keeps every label")
    if version == "V1":
        notes.append("warning: these are the V1 labels; published accuracies of RSA and SDA are those of V2")
    number, clips, splits = len(names) if names else config.num_classes, {}, []
    for file in files:
        videos = []
        for where, entry in entries_of(file, vid_name=str, label=int):
            videos.append((_add(clips, entry["vid_name"], where), whole(entry["label"], "label", where, number)))
        splits.append(videos)
    lists = _lists(config, *splits, names, {"val": 1_970} if version == "V2" else {})
    forms = [*files, *([vocabulary] if vocabulary else [])]
    order = "the label numbers of the official files"
    return _plan(
        config, clips, [lists], label_version=f"Diving48 {version}", class_order=order, forms=forms, notes=notes
    )


def epic55(inputs: Inputs, val_participants: list[str]) -> Plan:
    """``EPIC_train_action_labels.csv`` with the two class files. Clips are cut from the videos by their time stamps.

    The labels of the official test videos are not published, so videos of some participants are the validation list.
    """
    file = inputs.find("list of action segments", "EPIC_train_action_labels.csv")
    columns = ("uid", "participant_id", "video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class")
    rows, clips, forms = list(records_of(file, *columns)), {}, [file]
    classes, lists = {}, []
    for kind in ("verb", "noun"):
        config = load_dataset_config(f"epic_kitchens_55_{kind}")
        names_file = inputs.find(f"list of {kind}s", f"EPIC_{kind}_classes.csv", needed=False)
        names = None
        if names_file:
            names = _names_by_number(names_file, f"{kind}_id", "class_key")
            forms.append(names_file)
        classes[kind] = config, names, [], []
    for where, row in rows:
        start, end = (seconds(row[key], key, where) for key in ("start_timestamp", "stop_timestamp"))
        if end <= start:
            raise DataError(
                f"{where}: stop_timestamp {row['stop_timestamp']!r} is not after the start; correct the line"
            )
        uid = whole(row["uid"], "uid", where)
        path = _add(clips, f"{row['video_id']}_{uid}", where, Place(row["video_id"], start, end))
        held_out = row["participant_id"] in val_participants
        for kind, (config, names, train, val) in classes.items():
            number = len(names) if names else config.num_classes
            (val if held_out else train).append((path, whole(row[f"{kind}_class"], f"{kind}_class", where, number)))
    for config, names, train, val in classes.values():
        lists.append(_lists(config, train, val, names, {}))
    notes = [
        "note: validation videos are those of participants "
        f"{', '.join(val_participants)}; SDA's split is not published, so state yours"
    ]
    order = "the class numbers of the official files"
    version = "EPIC-KITCHENS-55 training labels"
    return _plan(config, clips, lists, label_version=version, class_order=order, forms=forms, notes=notes)


def _names_by_number(file: Path, number: str, name: str) -> list[str]:
    found = {whole(row[number], number, where): row[name] for where, row in records_of(file, number, name)}
    if sorted(found) != list(range(len(found))):
        raise DataError(f"{one_line(file)}: column {number!r} does not count from 0 without a gap; download it again")
    return numbered([found[i] for i in range(len(found))])


def finegym(inputs: Inputs) -> Plan:
    """``finegym_annotation_info*.json`` and the element lists of Gym99, Gym288 or both."""
    times_file = inputs.find("list of events", "finegym_annotation_info*.json")
    times, clips, lists, forms, notes = json_of(times_file, dict), {}, [], [times_file], []
    for number, published in ((99, {"train": 20_484}), (288, {})):
        if not inputs.find_all(f"gym{number}_train_element*.txt"):
            notes.append(f"note: no gym{number}_train_element*.txt, so Gym{number} is not prepared")
            continue
        config = load_dataset_config(f"finegym{number}")
        names_file = inputs.find("class names", f"gym{number}_categories.txt", needed=False)
        names = _gym_names(names_file) if names_file else None
        forms += [names_file] if names_file else []
        splits = []
        for split in ("train", "val"):
            file = inputs.find(f"list of {split} elements", f"gym{number}_{split}_element*.txt")
            forms.append(file)
            splits.append([])
            for where, line in lines_of(file):
                element, _, label = line.rpartition(" ")
                path = _add(clips, element, where, *_gym_places(element, times, where, times_file))
                splits[-1].append((path, whole(label, "label", where, len(names) if names else number)))
        if "v1.0" not in "".join(file.name for file in forms if f"gym{number}_train" in file.name):
            published = {}  # the counts are those of v1.0
        lists.append(_lists(config, *splits, names, published))
    if not lists:
        inputs.find("list of training elements", "gym99_train_element*.txt", "gym288_train_element*.txt")
    version = "FineGym, " + ", ".join(file.name for file in forms if "_element" in file.name or file == times_file)
    order = "the label numbers of the official files"
    return _plan(config, clips, lists, label_version=version, class_order=order, forms=forms, notes=notes)


def _gym_names(file: Path) -> list[str]:
    """Lines ``Clabel: 0; set: 1; Glabel: 2; (VT) round-off, ...``, in which the class name comes last."""
    names = {}
    for where, line in lines_of(file):
        match = re.fullmatch(r"Clabel:\s*(\d+)\s*;(?:\s*\w+:\s*\d+\s*;)*\s*(.+)", line)
        if not match:
            raise DataError(f"{where}: {shown(line)} is not 'Clabel: number; ...; name'; is this the official file?")
        names[int(match[1])] = match[2]
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{one_line(file)}: Clabel does not count from 0 without a gap; download it again")
    return numbered([names[i] for i in range(len(names))])


def _gym_places(element: str, times: dict, where: str, times_file: Path) -> list[Place]:
    """The element's own file, its event's, or the whole video, by the seconds that an element and an event have."""
    match = re.fullmatch(r"(.+)_(E_\d+_\d+)_(A_\d+_\d+)", element)
    if not match:
        raise DataError(f"{where}: {shown(element)} is not 'video_E_.._.._A_.._..'; is this the official file?")
    video, event, action = match.groups()
    places = [Place(element)]
    try:
        details = times[video][event]
        start, end = details["timestamps"][0][0], details["timestamps"][-1][1]
        action_times = details["segments"][action]["timestamps"]
        first, last = action_times[0][0], action_times[-1][1]
        places.append(Place(f"{video}_{event}", float(first), float(last)))
        places.append(Place(video, float(start + first), min(float(start + last), float(end))))
    except KeyError:
        pass  # another version of the times; the clip is skipped with its reason unless its own file exists
    except (TypeError, IndexError, ValueError):
        raise DataError(
            f"{one_line(times_file)}: the times of {shown(element)} are not numbers; download it again"
        ) from None
    return places


def kinetics400(inputs: Inputs) -> Plan:
    """CSV files with ``label,youtube_id,time_start,time_end``; the clips are ``<id>_<start>_<end>`` with six digits."""
    files = [
        inputs.find("list of training videos", "*train.csv"),
        inputs.find("list of validation videos", "*val.csv", "*validate.csv", "*validation.csv"),
    ]
    columns = ("label", "youtube_id", "time_start", "time_end")
    rows = [list(records_of(file, *columns)) for file in files]
    names = sorted({row["label"].strip() for split in rows for _, row in split})
    labels, clips, splits = {name: i for i, name in enumerate(names)}, {}, []
    for split in rows:
        videos = []
        for where, row in split:
            name = row["label"].strip()
            start, end = (whole(row[key], key, where) for key in ("time_start", "time_end"))
            video = f"{row['youtube_id']}_{start:06d}_{end:06d}"
            folder = name.replace(" ", "_").replace("/", "_")
            videos.append((_add(clips, f"{folder}/{video}", where, Place(video)), labels[name]))
        splits.append(videos)
    config = load_dataset_config("kinetics400")
    lists = _lists(config, *splits, names, {"train": 240_436, "val": 19_796})
    version = "Kinetics-400 CSV files"
    return _plan(config, clips, [lists], label_version=version, class_order=ALPHABETICAL, forms=files)


def _three_splits(config: DatasetConfig, splits: dict[int, tuple[Labelled, Labelled]], names, published) -> list[Lists]:
    """``data/<name>.yaml`` names split 1; the others get ``<name>_split_<n>.yaml`` of their own."""
    lists = []
    for number, (train, val) in sorted(splits.items()):
        one = _lists(config, train, val, names, published.get(number, {}))
        one.train_list, one.val_list = (name.replace("_1.", f"_{number}.") for name in (one.train_list, one.val_list))
        one.yaml = one.yaml if number == 1 else f"{config.name}_split_{number}.yaml"
        lists.append(one)
    return lists


def ucf101(inputs: Inputs) -> Plan:
    """``classInd.txt``, ``trainlist0?.txt`` and ``testlist0?.txt`` of the recognition task, of each split."""
    names_file = inputs.find("list of class names", "classInd.txt")
    found, forms = {}, [names_file]
    for where, line in lines_of(names_file):
        number, _, name = line.partition(" ")
        found[whole(number, "class number", where) - 1] = name.strip()
    if sorted(found) != list(range(len(found))):
        raise DataError(f"{one_line(names_file)}: classes do not count from 1 without a gap; download it again")
    names, clips, splits = [found[i] for i in range(len(found))], {}, {}
    labels = {name: i for i, name in enumerate(names)}
    inputs.find("list of training videos", "trainlist01.txt", "trainlist02.txt", "trainlist03.txt")
    for split in (1, 2, 3):
        if not inputs.find_all(f"trainlist0{split}.txt"):
            continue
        pair = []
        for kind in ("train", "test"):
            file = inputs.find(f"{kind} list of split {split}", f"{kind}list0{split}.txt")
            forms.append(file)
            pair.append([])
            for where, line in lines_of(file):
                video, *number = line.rsplit(" ", 1) if kind == "train" else [line]
                path = _stem(video)
                label = label_of(path.partition("/")[0], labels, where, names_file)
                if number and whole(number[0], "class number", where) != label + 1:
                    raise DataError(
                        f"{where}: class number {number[0]} is not that of its folder, {label + 1}; correct it"
                    )
                pair[-1].append((_add(clips, path, where), label))
        splits[split] = tuple(pair)
    counts = {1: (9_537, 3_783), 2: (9_586, 3_734), 3: (9_624, 3_696)}
    published = {number: {"train": train, "val": val} for number, (train, val) in counts.items()}
    config = load_dataset_config("ucf101")
    lists = _three_splits(config, splits, names, published)
    order = "that of classInd.txt, minus 1 (alphabetical)"
    return _plan(config, clips, lists, label_version="UCF101 recognition task", class_order=order, forms=forms)


def hmdb51(inputs: Inputs) -> Plan:
    """``<class>_test_split<n>.txt`` of the three splits: ``video 1`` trains, ``2`` tests, ``0`` is not used."""
    found = {}
    for file in inputs.find_all("*_test_split?.txt"):
        name, _, number = file.stem.rpartition("_test_split")
        found.setdefault(whole(number, "split", one_line(file), 4), {})[name] = file
    if not found:
        inputs.find("list of a split", "*_test_split1.txt")
    names = sorted({name for files in found.values() for name in files})
    clips, splits, forms = {}, {}, []
    for split, files in found.items():
        missing = [name for name in names if name not in files]
        if missing:
            raise DataError(f"no {missing[0]}_test_split{split}.txt beside those of the other classes; unpack it there")
        splits[split] = [], []
        for label, name in enumerate(names):
            forms.append(files[name])
            for where, line in lines_of(files[name]):
                video, _, use = line.rpartition(" ")
                path = f"{name}/{_stem(video.strip())}"
                use = whole(use, "use of the video", where, 3)
                if use:
                    splits[split][use - 1].append((_add(clips, path, where), label))
    published = {number: {"train": 3_570, "val": 1_530} for number in (1, 2, 3)}
    lists = _three_splits(load_dataset_config("hmdb51"), splits, names, published)
    config = load_dataset_config("hmdb51")
    return _plan(config, clips, lists, label_version="HMDB51 70/30 splits", class_order=ALPHABETICAL, forms=forms)


FORMS = {
    "something_v1": something_v1,
    "something_v2": something_v2,
    "diving48": diving48,
    "finegym": finegym,
    "kinetics400": kinetics400,
    "ucf101": ucf101,
    "hmdb51": hmdb51,
}
