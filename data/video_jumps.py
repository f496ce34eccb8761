"""The short way to a few frames of a video file: only the packets that these frames need are decoded.

A packet is one coded frame. Reading all packets takes a few percent of the time of decoding them. Players show frames
in the order of their time stamps, so the rank of a packet's time stamp is the number of its frame. This is also true
if the frame rate varies. Two kinds of packets are not decoded:

* those between the last packet that is needed and a later key frame, from which the decoder can start again;
* in H.264, those of frames that no other frame refers to.

Frames and their numbers are the same as if the file is decoded from its start. If this is not certain, the functions
raise ``NotCertain``, and the file must be decoded from its start.
"""

from collections.abc import Iterator
from typing import Any

# PyAV's names of decoders. The tests compare each of them with decoding from the start.
CODECS = ("av1", "h264", "hevc", "libdav1d", "mpeg4", "vp8", "vp9")
LARGEST = 2**27  # bytes; the packets of a file are in memory at once
_IDR, _SLICE = 5, 1  # H.264's numbers of two kinds of units
_KIND = 0b11111  # the bits of a unit's first byte that hold its kind


class NotCertain(Exception):
    """It is not certain that the time stamps of a file give the order in which its frames are shown."""


def needed_frames(container: Any, stream: Any, wanted: set[int], num_frames: int) -> Iterator[tuple[int, Any]]:
    """PyAV's frames with their numbers (from 1): the wanted ones and others that were decoded on the way to them.

    ``num_frames`` is the number of frames by the list. The file must have as many packets.

    Errors: ``NotCertain``, also after some frames; PyAV's errors.
    """
    decoder = stream.codec_context
    packets = _packets(container, stream, num_frames)
    numbers = {stamp: number for number, stamp in enumerate(sorted(packet.pts for packet in packets), start=1)}
    order = [numbers[packet.pts] for packet in packets]  # the number of each packet's frame
    for start, stop in _pieces(order, _starts(packets, order, decoder), wanted):
        decoder.flush_buffers()
        last = 0
        for place in range(start, stop + 1):
            if decoder.name == "h264":  # for VP9 this makes decoding no faster
                decoder.skip_frame = "NONREF" if place < stop and order[place] not in wanted else "DEFAULT"
            for frame in decoder.decode(packets[place] if place < stop else None):  # None: give the delayed frames
                number = numbers.get(frame.pts, 0)
                if number <= last or frame.is_corrupt:
                    raise NotCertain
                yield number, frame
                last = number


def _packets(container: Any, stream: Any, num_frames: int) -> list[Any]:
    """All packets of a stream, in the order of decoding.

    Errors: ``NotCertain`` if a packet may give no frame, two frames, or a frame at an unknown time.
    """
    if stream.codec_context.name not in CODECS or container.size > LARGEST:
        raise NotCertain
    packets = [packet for packet in container.demux(stream) if packet.size]  # PyAV adds an empty packet at the end
    stamps = {packet.pts for packet in packets}
    if len(packets) != num_frames or len(stamps) != num_frames or None in stamps:
        raise NotCertain
    if any(packet.is_discard or packet.is_corrupt for packet in packets):  # an edit list may leave out frames
        raise NotCertain
    if (sorted(stamps) != [packet.pts for packet in packets]) != bool(stream.codec_context.has_b_frames):
        raise NotCertain  # AVI stores no time stamps; in a file copied from it, they may count the order of decoding
    return packets


def _starts(packets: list[Any], order: list[int], decoder: Any) -> list[int]:
    """The places of key frames from which the decoder can start.

    All packets before such a place are of earlier frames, and all packets after it of later frames (a closed group of
    pictures).

    Errors: ``NotCertain`` if the first packet is no such key frame.
    """
    starts, highest = [], 0
    for place, packet in enumerate(packets):
        closed = packet.is_keyframe and highest == place and order[place] == place + 1
        if closed and (decoder.name != "h264" or _is_idr(packet, decoder.extradata)):
            starts.append(place)
        highest = max(highest, order[place])
    if not starts or starts[0] != 0:
        raise NotCertain
    return starts


def _is_idr(packet: Any, header: bytes | None) -> bool:
    """Whether an H.264 key frame is an IDR picture.

    Files also mark other pictures as key frames, and frames after these may refer to frames before them. The result is
    ``False`` for a stream without the header of MP4 and Matroska files, because its units are stored in another way.
    """
    if not header or header[0] != 1:
        return False
    content, size = memoryview(packet), (header[4] & 3) + 1
    kinds, place = set(), 0
    while place + size < len(content):
        kinds.add(content[place + size] & _KIND)
        place += size + int.from_bytes(content[place : place + size], "big")
    return _IDR in kinds and _SLICE not in kinds


def _pieces(order: list[int], starts: list[int], wanted: set[int]) -> list[tuple[int, int]]:
    """The ranges of packets that hold the wanted frames. Each begins at the last possible start."""
    pieces = []
    places = [place for place, number in enumerate(order) if number in wanted]
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        inside = [place for place in places if start <= place < end]
        if inside:
            pieces.append((start, inside[-1] + 1))
    return pieces
