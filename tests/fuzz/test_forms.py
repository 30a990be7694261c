"""Multipart forms: however one is cut into pieces it means the same, and however it is broken it is refused."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import ProblemError
from serving.http.forms import MAX_PARTS, Form
from tests.fuzz import examples
from tests.fuzz.test_damaged_pictures import assert_documented
from tests.serving.conftest import PHOTO, Running

BOUNDARY = "boundary"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
START = b'--boundary\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'

NAMES = st.sampled_from(["file", "photo", "FILE", "file ", "", 'fi"le', "ファイル"])
NAUGHTY = st.binary(max_size=60) | st.sampled_from([b"--boundary", b"\r\n--boundary", b"\r\n--boundary--\r\n", PHOTO])
HEADERS = st.sampled_from([
    b"Content-Type: image/jpeg", b"Content-Type: multipart/mixed; boundary=inner", b"Content-Length: 99999999",
    b"Content-Transfer-Encoding: base64", b"content-disposition: form-data; name=file",
    b'Content-Disposition: form-data; name="file"; name="photo"', b"Content-Disposition: attachment", b":", b"A", b"",
    b"A: " + b"a" * 5000, b"A\x00: \x00", b" folded: line",
    b'Content-Disposition: form-data; name="file"; filename*=utf-8\'\'%zz',
])  # fmt: skip


@st.composite
def parts(draw: st.DrawFn) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{draw(NAMES)}"; filename="f"'.encode()
    headers = draw(st.permutations([disposition, *draw(st.lists(HEADERS, max_size=3))]))
    return b"--boundary\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + draw(NAUGHTY) + b"\r\n"


@st.composite
def forms(draw: st.DrawFn) -> bytes:
    body = draw(st.sampled_from([b"", b"preamble\r\n", b"\r\n"]))
    body += b"".join(draw(st.lists(parts(), max_size=4)))
    body += draw(
        st.sampled_from([b"--boundary--\r\n", b"--boundary--", b"--boundary", b"", b"--boundary--\r\nepilogue"])
    )
    if draw(st.booleans()):
        return body
    place, byte = draw(st.integers(0, max(0, len(body) - 1))), draw(st.binary(max_size=3))
    return body[:place] + byte + body[place + draw(st.integers(0, 40)) :]


def read(body: bytes, cuts: list[int], content_type: str = TYPE) -> bytes | str:
    """The file in the form, or the code of the problem; nothing else may come of it."""
    places = [0, *sorted(cuts), len(body)]
    try:
        form = Form(content_type)
        try:
            for start, end in pairwise(places):
                form.feed(body[start:end])
            return bytes(form.finish()[0])
        finally:
            form.close()
    except ProblemError as error:
        assert error.code == "malformed_request"
        return error.code


@examples(400)
@given(st.data())
def test_a_form_means_the_same_in_whatever_pieces_it_arrives(data: st.DataObject) -> None:
    body = data.draw(forms())
    whole = read(body, [])
    assert read(body, data.draw(st.lists(st.integers(0, len(body)), max_size=8))) == whole
    assert read(body, list(range(min(len(body), 2000)))) == whole


@examples(200)
@given(st.binary(max_size=4000), st.lists(st.integers(0, 4500)))
def test_a_well_formed_file_arrives_unchanged(content: bytes, cuts: list[int]) -> None:
    if b"--boundary" in content:
        return
    body = START + content + b"\r\n--boundary--\r\n"
    assert read(body, [min(cut, len(body)) for cut in cuts]) == content


@examples(200)
@given(st.integers(0, 10**6))
def test_a_form_that_is_cut_short_is_refused_and_no_part_of_a_picture_taken_for_the_whole(length: int) -> None:
    body = START + PHOTO + b"\r\n--boundary--"
    assert read(body[: length % len(body)], []) == "malformed_request"


@examples(200)
@given(st.binary(max_size=600), st.lists(st.integers(0, 600), max_size=5))
def test_bytes_that_are_no_form_are_refused(body: bytes, cuts: list[int]) -> None:
    assert read(b"\x00" + body, [min(cut, len(body)) for cut in cuts]) == "malformed_request"


TYPES = st.text(st.characters(codec="latin-1"), max_size=80)


@examples(400)
@given(TYPES | TYPES.map(lambda text: "multipart/form-data; boundary=" + text))
def test_whatever_the_content_type_a_form_is_read_or_refused(content_type: str) -> None:
    read(b"--boundary\r\n\r\n--boundary--\r\n", [], content_type)


@examples(100)
@given(st.integers(1, 3 * MAX_PARTS))
def test_a_form_has_so_many_parts_and_no_more(count: int) -> None:
    part = b'--boundary\r\nContent-Disposition: form-data; name="other"\r\n\r\n\r\n'
    file = b'--boundary\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nhi\r\n--boundary--\r\n'
    assert read(part * (count - 1) + file, []) == (b"hi" if count <= MAX_PARTS else "malformed_request")


@pytest.mark.parametrize(
    "bomb",
    [
        START + b"\r\n--boundaryx" * 1_000_000,
        START + b"\r\n--boundary" + b" " * 19_000_000,
        START[:-2] + b"A:b\r\n c\r\n" * 1_000_000,
        START[:-2] + b"A:b\r\n" * 1_000_000,
        START[:-2] + b"A:b" * 1_000_000,
    ],
    ids=["what looks like the end of a part", "blanks behind a boundary", "folded headers", "headers", "a header"],
)  # fmt: skip
def test_a_form_that_is_made_to_be_costly_is_refused_in_its_first_pieces(bomb: bytes) -> None:
    size, form = 65_536, Form(TYPE)
    with pytest.raises(ProblemError) as refused:
        for start in range(0, 3 * size, size):
            form.feed(bomb[start : start + size])
    assert refused.value.code == "malformed_request"


@examples(100)
@given(forms())
def test_a_server_answers_any_form_as_documented(server: Running, body: bytes) -> None:
    answer = server.http.post("/predict", content=body, headers={"content-type": TYPE})
    assert_documented(answer)
