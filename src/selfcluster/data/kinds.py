"""What kind of file some bytes are, by their first bytes and never by the name; and what would read the unsupported."""

from __future__ import annotations

from typing import NamedTuple

HEADER_BYTES = 512


class Kind(NamedTuple):
    """`name` of the format; `advice` is what to do where it is no image that can be read, else empty."""

    name: str
    advice: str = ""


_CONVERT = "convert it to JPEG or PNG"
_UNPACK = "unpack it"
_RAW = "it is a camera's raw file; install the extra for these: pip install 'selfcluster[raw]'"

# (offset, first bytes, kind); the first match counts
_SIGNATURES = (
    (0, b"\xff\xd8\xff", Kind("JPEG")),
    (0, b"\x89PNG\r\n\x1a\n", Kind("PNG")),
    (0, b"GIF87a", Kind("GIF")),
    (0, b"GIF89a", Kind("GIF")),
    (8, b"CR\x02\0", Kind("RAW", _RAW)),  # Canon's CR2 is a TIFF inside
    (0, b"IIRO", Kind("RAW", _RAW)),
    (0, b"IIRS", Kind("RAW", _RAW)),
    (0, b"MMOR", Kind("RAW", _RAW)),
    (0, b"IIU\0", Kind("RAW", _RAW)),
    (0, b"FUJIFILMCCD-RAW", Kind("RAW", _RAW)),
    (4, b"ftypcrx ", Kind("RAW", _RAW)),
    (0, b"II*\0", Kind("TIFF")),
    (0, b"MM\0*", Kind("TIFF")),
    (0, b"II+\0", Kind("TIFF")),
    (0, b"MM\0+", Kind("TIFF")),
    (0, b"BM", Kind("BMP")),
    (128, b"DICM", Kind("DICOM", "convert it to PNG or TIFF, for example with dcmj2pnm or pydicom")),
    (0, b"8BPS", Kind("Photoshop", _CONVERT)),
    (4, b"jP  ", Kind("JPEG 2000", _CONVERT)),
    (0, b"\xff\x4f\xff\x51", Kind("JPEG 2000", _CONVERT)),
    (0, b"\xff\x0a", Kind("JPEG XL", _CONVERT)),
    (4, b"JXL ", Kind("JPEG XL", _CONVERT)),
    (0, b"v/1\x01", Kind("OpenEXR", "convert it to TIFF")),
    (0, b"#?RADIANCE", Kind("Radiance HDR", "convert it to TIFF")),
    (0, b"SIMPLE  =", Kind("FITS", "convert it to TIFF")),
    (0, b"\x89HDF\r\n\x1a\n", Kind("HDF5", "export its images as TIFF or PNG, or give the array from Python")),
    (0, b"\x93NUMPY", Kind("NumPy array", "give the array itself from Python: selfcluster.train(method, array)")),
    (0, b"version https://git-lfs", Kind("Git LFS pointer", "the image itself was not fetched; run: git lfs pull")),
    (0, b"\0\5\26\7", Kind("AppleDouble", "it holds a Mac's metadata, not an image; delete it")),
    (0, b"\x1f\x8b", Kind("gzip", _UNPACK)),
    (0, b"PK\3\4", Kind("zip", _UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", Kind("7-Zip", _UNPACK)),
    (0, b"BZh", Kind("bzip2", _UNPACK)),
    (0, b"\xfd7zXZ\0", Kind("xz", _UNPACK)),
    (0, b"\x28\xb5\x2f\xfd", Kind("Zstandard", _UNPACK)),
    (0, b"Rar!\x1a\7", Kind("RAR", _UNPACK)),
    (0, b"%PDF", Kind("PDF", "convert its pages to PNG")),
    (4, b"ftypqt  ", Kind("video", "extract its frames, for example with ffmpeg")),
    (4, b"ftypmp4", Kind("video", "extract its frames, for example with ffmpeg")),
    (4, b"ftypisom", Kind("video", "extract its frames, for example with ffmpeg")),
)
_IMAGES = frozenset({"JPEG", "PNG", "GIF", "TIFF", "BMP", "WebP", "AVIF", "HEIC"})
_AVIF = (b"avif", b"avis")
_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def recognize(data: bytes) -> Kind:
    """Return the kind of a file from its first `HEADER_BYTES` bytes (fewer where it is shorter).

    >>> recognize(b"GIF89a").name, recognize(b"PK\\3\\4").advice
    ('GIF', 'unpack it')
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return Kind("WebP")
    if data[4:8] == b"ftyp" and (brand := _brand(data)):
        return brand
    for offset, start, kind in _SIGNATURES:
        if data[offset : offset + len(start)] == start:
            return kind
    text = data[:HEADER_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return Kind("web page", "a download that failed often leaves one; fetch the image again")
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return Kind("SVG", "draw it as PNG first")
    return Kind("unknown")


def is_image(data: bytes) -> bool:
    """Whether a file that begins like this is an image in a format that is read."""
    return recognize(data).name in _IMAGES


def _brand(data: bytes) -> Kind | None:
    """AVIF or HEIC from the brands of an ISO media file; HEIC and AVIF both may lead with the generic `mif1`."""
    size = min(int.from_bytes(data[:4], "big"), len(data))
    brands = [data[8:12], *(data[k : k + 4] for k in range(16, size - 3, 4))]
    if any(brand in _AVIF for brand in brands):
        return Kind("AVIF")
    if any(brand in _HEIC for brand in brands):
        return Kind("HEIC")
    return None
