# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tables
#
# > Rows of named fields, read from a file, a DataFrame or a list of dicts.

# %%
#| default_exp foundation.tables

# %% [markdown]
# Questions, prompts, comparisons and votes of your own are rows of named fields, in a file (JSON lines, JSON, CSV,
# TSV, Parquet), a DataFrame or a list of dicts. This page reads them; each caller then checks its fields. No cell is
# guessed: in CSV and TSV every value is text, "NA" is a word, and in TSV quotes are letters.

# %%
#| export
import csv, io, json, math, re
from difflib import get_close_matches
from pathlib import Path

import pandas as pd
from moral_sc.foundation.datasets import check_characters, read_jsonl, unique_fields
from moral_sc.foundation.errors import ConfigError, DataError, short_repr

# %%
#| hide
import tempfile
from importlib.util import find_spec
from fastcore.test import *


# %%
#| export
def _read_text(path):
    "Read a text file, or name the line that is not UTF-8"
    try: data = Path(path).read_bytes()
    except (OSError, ValueError) as e: # A name with a null character
        reason = getattr(e, 'strerror', None) or e
        raise DataError(f'{str(path)!r:.200} cannot be read: {reason}.') from None
    try: return data.decode('utf-8-sig')
    except UnicodeDecodeError as e:
        line = data[:e.start].count(b'\n')+1
        raise DataError(f'{path}: line {line} is not UTF-8 text: save the file as UTF-8.') from None

def _separated_rows(path, delimiter, quoting):
    "Read a table whose first line names the columns; every line has as many fields"
    text = io.StringIO(_read_text(path), newline='')
    reader = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)
    rows = []
    try:
        header = next(reader, [])
        _check_header(path, header, delimiter)
        for fields in reader:
            if not fields: continue
            if len(fields)!=len(header):
                raise DataError(f'{path}: line {reader.line_num} has {len(fields)} fields, the '
                                f'first line has {len(header)}.')
            rows.append(dict(zip(header, fields)))
    except csv.Error as e:
        raise DataError(f'{path}: line {reader.line_num} cannot be read: {e}.') from None
    return rows

def _check_header(path, header, delimiter):
    if not any(header): raise DataError(f'{path} has no first line with the names of its columns.')
    other = next((d for d in (',', ';', '\t') if d!=delimiter and d in header[0]), None)
    if len(header)==1 and other:
        raise DataError(f'{path} is separated by {other!r}, not by {delimiter!r}.')
    repeated = next((h for h in header if header.count(h)>1), None)
    if repeated is not None: raise DataError(f'{path} has two columns {repeated!r}.')

def _read_json(path):
    try: rows = json.loads(_read_text(path), object_pairs_hook=unique_fields)
    except (ValueError, RecursionError) as e:
        raise DataError(f'{path} is not valid JSON ({e}).') from None
    if isinstance(rows, list) and all(isinstance(r, dict) for r in rows): return rows
    raise DataError(f'{path} is not a list of objects: save one object a line as .jsonl.')

def _read_parquet(path):
    try: return _frame_rows(pd.read_parquet(path))
    except ImportError:
        raise ConfigError(f'{path} needs pyarrow: pip install pyarrow, or save the table as '
                          '.jsonl.') from None
    except Exception as e: # pyarrow raises errors of many kinds
        raise DataError(f'{path} cannot be read as Parquet ({e}).') from None

def _plain(value):
    "Convert a value of numpy to one of Python"
    if hasattr(value, 'tolist'): value = value.tolist()
    if isinstance(value, (list, tuple)): return [_plain(v) for v in value]
    if isinstance(value, dict): return {k:_plain(v) for k,v in value.items()}
    return value

def is_missing(value)->bool:
    "Return whether a field is empty: None, NaN or a text without characters"
    if value is None or value is pd.NA or value is pd.NaT: return True
    if isinstance(value, str): return not value.strip()
    return isinstance(value, float) and math.isnan(value)

def _frame_rows(d):
    if d.columns.has_duplicates:
        raise DataError(f'The table has two columns {d.columns[d.columns.duplicated()][0]!r}.')
    rows = [{str(k):_plain(v) for k,v in r.items()} for r in d.to_dict('records')]
    return [{k:v for k,v in r.items() if not is_missing(v)} for r in rows]

_READERS = {'.jsonl':read_jsonl, '.ndjson':read_jsonl, '.gz':read_jsonl, '.json':_read_json,
            '.parquet':_read_parquet,
            '.csv':lambda p: _separated_rows(p, ',', csv.QUOTE_MINIMAL),
            '.tsv':lambda p: _separated_rows(p, '\t', csv.QUOTE_NONE)}

def source_name(
    source,           # A file, or rows
    name:str='rows',  # Of what is not a file
)->str:
    "Return the name of a source of rows for error messages"
    return str(source) if isinstance(source, (str,Path)) else name

def read_rows(
    source,           # A .jsonl, .json, .csv, .tsv or .parquet file, a DataFrame, a list of dicts
    name:str='rows',  # Of what is not a file, for error messages
)->list:              # Of dicts; at least one
    "Read rows of named fields"
    rows = _read_source(source)
    name = source_name(source, name)
    for k,r in enumerate(rows, 1): _check_row(r, f'{name}: row {k}')
    if not rows: raise DataError(f'{name} has no rows.')
    return rows

def _read_source(source):
    if isinstance(source, pd.DataFrame): return _frame_rows(source)
    if isinstance(source, (str,Path)):
        path = Path(source).expanduser()
        kind = '.gz' if path.name.endswith('.jsonl.gz') else path.suffix.lower()
        if kind in _READERS and (kind!='.gz' or path.name.endswith('.jsonl.gz')):
            return _READERS[kind](path)
        raise ConfigError(f'{path} is no table: name a .jsonl, .json, .csv, .tsv or .parquet file.')
    if isinstance(source, (list,tuple)): return [_plain(r) for r in source]
    raise ConfigError(f'{source!r:.60} is no table: give a file, a DataFrame or a list of dicts.')

def _check_row(row, location):
    if not isinstance(row, dict):
        raise DataError(f'{location} is {row!r:.60}, not a dict of fields.')
    try: check_characters(row, location)
    except (TypeError, ValueError, RecursionError):
        raise DataError(f'{location} holds a value that is not text, a number or a list.') from None


# %%
folder = Path(tempfile.mkdtemp())
rows = [dict(id='1', text='She said "no", twice.'), dict(id='NA', text='Fini, déjà')]
def save(name, text, encoding='utf-8'):
    (folder/name).write_bytes(text.encode(encoding))
    return folder/name

files = [save('a.jsonl', '\n'.join(json.dumps(r) for r in rows)), save('a.json', json.dumps(rows)),
         save('a.csv', 'id,text\n1,"She said ""no"", twice."\nNA,"Fini, déjà"\n'),
         save('a.tsv', 'id\ttext\n1\tShe said "no", twice.\nNA\tFini, déjà\n'),
         save('b.csv', '\ufeffid,text\r\n1,"She said ""no"", twice."\r\nNA,"Fini, déjà"\r\n')]
for f in files: test_eq(read_rows(f), rows)
separator = save('c.csv', 'id,text\n1,a\u2028b\x1cc\n') # Not the end of a line
test_eq(read_rows(separator), [dict(id='1', text='a\u2028b\x1cc')])
test_eq(read_rows(rows), rows)
test_eq(read_rows(pd.DataFrame(rows)), rows)
read_rows(pd.DataFrame([dict(id=1, label=2, note=None), dict(id=2, label=None, note='x')]))


# %% [markdown]
# A file that is not understood completely is refused, with the line.

# %%
def refused(contains, name, *text, error=DataError):
    with expect_fail(error, contains=contains): read_rows(save(name, *text) if text else name)

refused('line 3 is not UTF-8', 'x.csv', 'id,text\n1,a\n2,caf\xe9\n', 'latin-1')
refused('line 3 has 3 fields, the first line has 2', 'x.csv', 'id,text\n1,a\n2,b,c\n')
refused('line 2 cannot be read', 'x.csv', 'id,text\n1,"a\n')
refused("separated by ';'", 'x.csv', 'id;text\n1;a\n')
refused("two columns 'id'", 'x.tsv', 'id\tid\n1\t2\n')
refused('no first line', 'x.csv', '')
refused('has no rows', 'x.csv', 'id,text\n')
refused('not valid JSON', 'x.json', '[{]')
refused('not a list of objects', 'x.json', '{"a": 1}')
refused('line 2 is not valid JSON', 'x.jsonl', '{"a": 1}\n{')
refused("line 2: the field 'a' occurs twice", 'x.jsonl', '{"a": 1}\n{"a": 1, "a": 2}')
refused("the field 'a' occurs twice", 'x.json', '[{"a": 1, "a": 2}]')
refused('nested too deeply', 'x.jsonl', '['*100_000)
refused('cannot be read: No such file', folder/'gone.csv')
refused('null', 'a\0.csv')
refused('null', 'a\0.jsonl')
refused('name a .jsonl', folder/'a.xlsx', error=ConfigError)
for wrong,said in (([], 'has no rows'), (['Who?'], "row 1 is 'Who?', not a dict"),
                   ([rows[0], dict(id={1})], 'row 2 holds a value'),
                   ([dict(id='\ud83d')], 'row 1 has half a character')):
    with expect_fail(DataError, contains=said): read_rows(wrong)


# %% [markdown]
# ## Fields
#
# Values of text files are text, and a DataFrame turns whole numbers into decimals where some are missing. These
# functions convert a field of a row or name the row and the field.

# %%
#| export
def check_fields(
    row:dict,
    location:str,  # Of the row, for messages
    required,      # Names of fields
    optional=(),
):
    "Raise an error for a missing or misspelt field; other fields are allowed"
    known = [*required, *optional]
    extra = [str(k) for k in row if k not in known]
    missing = [k for k in known if is_missing(row.get(k))]
    for name in extra:
        nearest = get_close_matches(name.lower(), missing, 1, .75)
        if nearest: raise DataError(f'{location} has no {nearest[0]!r}; did you mean {name!r}?')
    lacks = [k for k in required if is_missing(row.get(k))]
    if lacks:
        raise DataError(f'{location} has no {lacks[0]!r}; a row needs {", ".join(required)}.')

def text_field(
    row:dict,
    name:str,
    location:str,      # Of the row, for messages
    default:str|None=None,
)->str:
    "Return a field as text"
    value = row.get(name, default)
    if is_missing(value) and default is not None: return default
    if isinstance(value, bool) or not isinstance(value, (str,int)) or is_missing(value):
        raise DataError(f'{location} has {value!r} as {name!r}, not a text.')
    return str(value).strip()

_NUMBER = r'[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?'

def number_field(
    row:dict,
    name:str,
    location:str,      # Of the row, for messages
    low:float,
    high:float,
)->float:
    "Return a field as a number within bounds"
    value = row.get(name)
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(_NUMBER, text):
        hint = '; write a decimal point' if re.fullmatch(r'[-+]?\d+,\d+', text) else ''
        hint = '; write the number without %' if text.endswith('%') else hint
        raise DataError(f'{location} has {value!r} as {name!r}, not a number{hint}.')
    if not low<=float(text)<=high:
        raise DataError(f'{location} has {value!r} as {name!r}, not a number from {low:g} to '
                        f'{high:g}.')
    return float(text)

def choice_field(
    row:dict,
    name:str,
    location:str,  # Of the row, for messages
    choices,       # Allowed values
):
    "Return a field that has one of some values; whole numbers may be written as text"
    value = row.get(name)
    text = str(value).strip()
    for c in choices:
        if isinstance(value, bool) or text not in (str(c), f'{c}.0'): continue
        return c
    allowed = ', '.join(map(str, choices[:-1])) + f' or {choices[-1]}'
    raise DataError(f'{location} has {value!r} as {name!r}, not {allowed}.')


# %%
row = dict(n='2', m=2.0, share='60,5', percent='60%', yes=True, kind='ambig')
test_eq([choice_field(row, k, 'row 1', (0,1,2)) for k in 'nm'], [2,2])
test_eq(number_field(row, 'n', 'row 1', 0, 5), 2.)
for f,args,said in ((choice_field, ('yes', 'row 1', (0,1)), 'not 0 or 1'),
                    (choice_field, ('kind', 'row 1', ('x','y')), "'ambig' as 'kind', not x or y"),
                    (number_field, ('share', 'row 1', 0, 100), 'write a decimal point'),
                    (number_field, ('percent', 'row 1', 0, 100), 'without %'),
                    (number_field, ('m', 'row 1', 3, 4), 'from 3 to 4'),
                    (text_field, ('m', 'row 1'), 'not a text')):
    with expect_fail(DataError, contains=said): f(row, *args)
with expect_fail(DataError, contains="no 'label'; did you mean 'lable'"):
    check_fields(dict(text='a', lable=1), 'row 1', ['text'], ['label'])
for row in (dict(label=1), dict(label=1, text=' ')):
    with expect_fail(DataError, contains="no 'text'; a row needs text"):
        check_fields(row, 'row 1', ['text'], ['label'])


# %% [markdown]
# A function that takes a table names the column that is missing, and what makes such tables.

# %%
#| export
def check_columns(
    table,       # DataFrame
    columns,     # Names that it must have
    source:str,  # What makes such tables
):
    "Raise an error unless a value is a table with some columns"
    if not isinstance(table, pd.DataFrame):
        raise ConfigError(f'The table is {short_repr(table)}; give {source}.')
    missing = [c for c in columns if c not in table]
    if missing: raise DataError(f'The table has no column {missing[0]!r}; give {source}.')


# %%
with expect_fail(ConfigError, contains='The table is None; give metrics'):
    check_columns(None, ['value'], 'metrics')
with expect_fail(DataError, contains="no column 'low'; give metrics of an evaluation"):
    check_columns(pd.DataFrame(dict(value=[1])), ['value', 'low'], 'metrics of an evaluation')
check_columns(pd.DataFrame(dict(value=[1], low=[0])), ['value', 'low'], 'metrics')

# %% [markdown]
# Parquet keeps the types of its columns. Text, whole numbers with gaps and lists come back as they were.

# %%
typed = [dict(id='1', label=2, scores=[.5, 1.]), dict(id='NA', text='Fini, déjà')]
if find_spec('pyarrow'):
    pd.DataFrame(typed).convert_dtypes().to_parquet(folder/'a.parquet')
    test_eq(read_rows(folder/'a.parquet'), typed)
    data = (folder/'a.parquet').read_bytes()
    for damaged in (data[:-10], data[:len(data)//2], b'PAR1', b''):
        (folder/'b.parquet').write_bytes(damaged)
        refused('cannot be read as Parquet', folder/'b.parquet')
else: refused('pip install pyarrow', save('a.parquet', ''), error=ConfigError)
