"""Tokenizer and sampler folders, their names and metadata; keys of artifacts; who may write them.

What must stay, so that artifacts of earlier versions are found and read; where something of it must change, raise
FORMAT in nvg/storage.py, by which older artifacts are refused (tests/artifacts/old has metadata of format 1):
- keys.py: the words and the order of what is hashed;
- files.py: the fields of metadata.json; models.py: names of files, half.json in the place of metadata.json while a
  generator is missing, and samplers whose metadata.json has no `weights`;
- nvg/data/tokens.py: columns of the Parquet files and the metadata of their schema;
- nvg/training/checkpoint.py: names of tensors, `<module>.<tensor>` and `<optimizer>/<parameter>/<moment>`;
- nvg/pyfunc.py: the path of this module and its `_load_pyfunc`, which the MLmodel files of registered models name.
"""
