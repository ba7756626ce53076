"""Media types of what a run holds, stated here because systems disagree about them."""

TYPES = {
    ".html": "text/html; charset=utf-8", ".json": "application/json", ".png": "image/png", ".txt": "text/plain; charset=utf-8",
    ".lrc": "text/plain; charset=utf-8", ".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg",
    ".opus": "audio/ogg", ".m4a": "audio/mp4",
}  # fmt: skip
