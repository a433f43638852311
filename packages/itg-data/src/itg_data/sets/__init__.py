"""Annotated sets on disk: their files, whether they are sound, what is in them, how they look.

`itg-data annotate` ends by calling `derive.write_derived`; `itg-data check`, `stats` and `view`
read what it wrote, and any folder with a `records.jsonl` as well, such as a scripted set.
"""

from itg_data.sets.folder import Sample, SetFolder

__all__ = ["Sample", "SetFolder"]
