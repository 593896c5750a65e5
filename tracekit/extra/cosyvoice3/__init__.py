"""CosyVoice3: its counts, its configuration, its programs' text logs, its sound."""

ENTRY_POINTS = {
    "tracekit.generations": {"cosyvoice3": "tracekit.extra.cosyvoice3.speech:SPEECH"},
    "tracekit.importers": {"cosyvoice3": "tracekit.extra.cosyvoice3.text_log:IMPORTER"},
}
"""Group -> name -> object, as a package's metadata would have them."""
