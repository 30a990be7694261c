"""Forms as clients write them, and what is left of one that was refused."""

import gc
import weakref

import pytest
from multipart import PushMultipartParser

from serving.errors import ProblemError
from serving.http import forms
from serving.http.forms import Form

TYPE = "multipart/form-data; boundary=b"
FILE = b"\xff\xd8\r\n--\r\n--a\r\n"


def read(head: str, content_type: str = TYPE, boundary: str = "b", before: str = "", after: str = "--\r\n") -> bytes:
    """The file of a form with one part that has these headers, in one piece and byte by byte."""
    body = f"{before}--{boundary}\r\n{head}\r\n\r\n".encode() + FILE + f"\r\n--{boundary}{after}".encode()
    found = []
    for size in (len(body), 1):
        form = Form(content_type)
        for start in range(0, len(body), size):
            form.feed(body[start : start + size])
        found += form.finish()
    assert found[0] == found[1]
    return bytes(found[0])


@pytest.mark.parametrize(
    "head",
    [
        'Content-Disposition: form-data; name="file"; filename="a.jpg"\r\nContent-Type: image/jpeg',
        "Content-Type: image/jpeg\r\nContent-Disposition: form-data; name=file; filename=a.jpg; filename*=utf-8''a.jpg",
        'content-disposition:form-data;name="file";filename="a.jpg"\r\nContent-Transfer-Encoding: binary',
        'Content-Disposition: form-data;\tname="file";\tfilename="a.jpg"',
        'Content-Disposition: form-data; filename="a; name=b.jpg"; name="file"',
        'Content-Disposition: form-data; name="file"; filename="a\\"b;name=x.jpg"',
        'Content-Disposition: form-data; name="file"; filename="C:\\cats\\猫%22.jpg"',
        "Content-Disposition: form-data; name=\"file\"; filename*=UTF-8''a.jpg",
        'Content-Disposition: attachment; name="file"; filename="a.jpg"',
        'Content-Disposition: file; name="file"; filename="a.jpg"',
        'Content-Disposition: form-data; name="file"; filename="a"\r\nContent-Length: 5\r\nX.Y: z\r\nContent-Length: ',
    ],
)
def test_a_part_is_found_however_a_client_writes_its_headers(head: str) -> None:
    assert read(head) == FILE


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('multipart/form-data; boundary="b"; charset=utf-8', "b"),
        ("Multipart/Form-Data;charset=utf-8;BOUNDARY=b;", "b"),
        ("multipart/form-data; boundary=----=_Part_1_2.3", "----=_Part_1_2.3"),
        ('multipart/form-data; boundary="a b/c:d?(e)"', "a b/c:d?(e)"),
        ("multipart/form-data; boundary=" + 70 * "b", 70 * "b"),
    ],
)
def test_a_boundary_is_found_however_a_client_writes_it(content_type: str, boundary: str) -> None:
    head = 'Content-Disposition: form-data; name="file"; filename="a.jpg"'
    assert read(head, content_type, boundary) == FILE
    assert read(head, content_type, boundary, "a preamble\r\n", "--") == FILE
    assert read(head, content_type, boundary, "\r\n", "--\r\nan epilogue") == FILE


@pytest.mark.parametrize(
    "body",
    [
        b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nhi\r\n--bad',
        b"--b\r\nno header\r\n",
        b"--b\r\n" * 99,
    ],
)
def test_nothing_is_left_of_a_form_that_was_refused(body: bytes) -> None:
    form = Form(TYPE)
    left = weakref.ref(form)
    gc.disable()
    try:
        with pytest.raises(ProblemError):
            form.feed(body)
        form.close()
        del form
        assert left() is None, "it need not wait for the garbage collector"
    finally:
        gc.enable()


def test_what_is_overridden_of_the_library_exists_there() -> None:
    own = [name for name in vars(forms._Parser) if callable(getattr(forms._Parser, name)) and not name.startswith("__")]
    assert set(own) == {"_on_segment_headerline", "_create_segment"}
    assert all(callable(getattr(PushMultipartParser, name)) for name in own)
