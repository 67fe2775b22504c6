import mmap
from itertools import pairwise

import numpy as np
import pytest
from absl.app import UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tfrecord.decoding import Column, MalformedRecordError, _decode_varints, decode_examples
from data.tfrecord.encoding import encode_examples
from data.tfrecord.files import RecordFile
from data.tfrecord.frames import masked_crc32c
from data.tfrecord.recovery import scan


@st.composite
def batches(draw):
    rows, features = draw(st.integers(1, 5)), {}
    for name in draw(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=4, unique=True)):
        width = draw(st.integers(1, 6))
        if draw(st.booleans()):
            values = draw(st.lists(st.floats(width=32, allow_nan=False), min_size=rows * width, max_size=rows * width))
            matrix = np.asarray(values, np.float32).reshape(rows, width)
        else:
            top = draw(st.sampled_from([1, 127, 128, 2**14, 2**21, 2**31 - 1]))
            values = draw(st.lists(st.integers(0, top), min_size=rows * width, max_size=rows * width))
            matrix = np.asarray(values, np.int64).reshape(rows, width)
        lengths = None
        if draw(st.booleans()):
            lengths = np.asarray(draw(st.lists(st.integers(1, width), min_size=rows, max_size=rows)))
        features[name] = matrix if lengths is None else (matrix, lengths)
    return features


def records_of(content, offsets):
    return [content[a + 12 : b - 4].tobytes() for a, b in pairwise(offsets)]


def expected(rows):
    matrix, lengths = rows if isinstance(rows, tuple) else (rows, np.full(len(rows), rows.shape[1]))
    return [row[:n] for row, n in zip(matrix, lengths, strict=True)]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(batches())
def test_decode_undoes_encode(features):
    content, offsets = encode_examples(features)
    columns, bad = decode_examples(records_of(content, offsets))
    assert not bad.any()
    assert set(columns) == set(features)
    for name, rows in features.items():
        column = columns[name]
        for i, row in enumerate(expected(rows)):
            np.testing.assert_array_equal(column.values[column.splits[i] : column.splits[i + 1]], row)


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow")


@settings(max_examples=30, deadline=None)
@given(batches())
def test_tensorflow_reads_what_we_write_and_writes_as_many_bytes(tf, features):
    content, offsets = encode_examples(features)
    for i, record in enumerate(records_of(content, offsets)):
        example = tf.train.Example.FromString(record)
        assert set(example.features.feature) == set(features)
        for name, rows in features.items():
            feature = example.features.feature[name]
            values = feature.float_list.value or feature.int64_list.value
            np.testing.assert_array_equal(np.asarray(values), expected(rows)[i])
        # Canonical encoding: nothing but the order of the features is ours.
        assert len(example.SerializeToString()) == len(record)


def test_tensorflow_reads_our_files(tf, tmp_path):
    features = {"input_ids": np.arange(60).reshape(4, 15) * 300, "weights": np.ones((4, 3), np.float32)}
    path = tmp_path / "x.tfrecord"
    path.write_bytes(encode_examples(features)[0].tobytes())
    spec = {"input_ids": tf.io.FixedLenFeature([15], tf.int64), "weights": tf.io.FixedLenFeature([3], tf.float32)}
    parsed = [tf.io.parse_single_example(record, spec) for record in tf.data.TFRecordDataset(str(path))]
    np.testing.assert_array_equal([x["input_ids"].numpy() for x in parsed], features["input_ids"])
    np.testing.assert_array_equal([x["weights"].numpy() for x in parsed], features["weights"])


def test_we_read_what_tensorflow_writes(tf, tmp_path):
    rng = np.random.default_rng(0)
    ids, weights = rng.integers(0, 2**40, (7, 9)), rng.random((7, 4)).astype(np.float32)
    path = tmp_path / "x.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row, weight in zip(ids, weights, strict=True):
            feature = {
                "ids": tf.train.Feature(int64_list=tf.train.Int64List(value=row)),
                "weights": tf.train.Feature(float_list=tf.train.FloatList(value=weight)),
                "empty": tf.train.Feature(int64_list=tf.train.Int64List(value=[])),
                "unset": tf.train.Feature(),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    file = RecordFile(path)
    order = np.asarray([3, 0, 6])
    columns, bad = decode_examples(file.read(order))
    assert len(file) == 7
    assert not bad.any()
    np.testing.assert_array_equal(columns["ids"].matrix(9), ids[order])
    np.testing.assert_array_equal(columns["weights"].matrix(4), weights[order])
    assert len(columns["empty"].values) == len(columns["unset"].values) == 0


def unpacked_example(ids, weights):
    def message(tag, content):
        assert len(content) < 128
        return bytes([tag, len(content)]) + content

    def varint(value):
        return bytes([value]) if value < 128 else bytes([value & 127 | 128, value >> 7])

    int64_list = b"".join(b"\x08" + varint(value) for value in ids)
    float_list = b"".join(b"\x0d" + np.float32(value).tobytes() for value in weights)
    entries = [
        message(0x0A, message(0x0A, b"weights") + message(0x12, message(0x12, float_list))),
        message(0x0A, message(0x0A, b"ids") + message(0x12, message(0x1A, int64_list))),
    ]
    return message(0x0A, b"".join(entries))


def test_reads_unpacked_lists_and_mixtures(tf):
    ids, weights = [[8, 300, 0], [8, 8, 9000]], [[1.5, 0.0], [13.0, -2.0]]
    records = [unpacked_example(*rows) for rows in zip(ids, weights, strict=True)]
    assert tf.train.Example.FromString(records[1]).features.feature["ids"].int64_list.value == ids[1]
    content, offsets = encode_examples({"ids": np.asarray([[5, 6, 7]]), "weights": np.asarray([[0.5, 1]], np.float32)})
    columns, bad = decode_examples(records + records_of(content, offsets))
    assert not bad.any()
    np.testing.assert_array_equal(columns["ids"].matrix(3), [*ids, [5, 6, 7]])
    np.testing.assert_array_equal(columns["weights"].matrix(2), [*weights, [0.5, 1]])


def test_feature_that_some_records_lack_marks_them_bad():
    one, two = ({name: np.ones((1, 2), np.int64) for name in names} for names in (("a", "b"), ("b",)))
    records = records_of(*encode_examples(one)) + records_of(*encode_examples(two))
    assert decode_examples(records, ["a"])[1].tolist() == [False, True]
    assert decode_examples(records, ["b"])[1].tolist() == [False, False]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_arbitrary_bytes_never_crash_the_decoder(records):
    decode_examples(records)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(batches(), st.data())
def test_damaged_bytes_never_crash_the_decoder(features, data):
    record = bytearray(records_of(*encode_examples(features))[0])
    for _ in range(3):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    decode_examples([bytes(record)])


def some_records(count=20):
    rng = np.random.default_rng(1)
    values = rng.integers(0, 3000, (count, 12))
    return encode_examples({"x": (values, rng.integers(1, 13, count))})


def test_every_single_damaged_byte_loses_its_own_record_at_most():
    content, offsets = some_records(6)
    whole = [(int(a) + 12, int(b) - 4) for a, b in pairwise(offsets)]
    assert scan(content.tobytes()).intact == whole
    lost = 0
    for at in range(len(content)):
        damaged = content.copy()
        damaged[at] ^= 0x10
        found = scan(damaged.tobytes())
        hit = int(np.searchsorted(offsets, at, side="right")) - 1
        assert found.intact in (whole, whole[:hit] + whole[hit + 1 :])
        assert len(found.damaged) == len(whole) - len(found.intact)
        in_header = at - offsets[hit] < 12
        assert found.damaged_headers == in_header
        assert (len(found.intact) == len(whole)) == in_header
        lost += len(found.damaged)
    assert lost == len(content) - 12 * 6


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_what_lies_outside_a_destroyed_stretch_is_recovered(data):
    content, offsets = some_records()
    begin = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(begin, min(len(content), begin + 200)))
    action = data.draw(st.sampled_from(["overwrite", "cut", "insert"]))
    raw = content.tobytes()
    middle = {"overwrite": b"\xa5" * (end - begin), "cut": b"", "insert": raw[begin:end] + b"\x00" * 33}[action]
    damaged = raw[:begin] + middle + raw[end:]
    recovered = [damaged[a:b] for a, b in scan(damaged).intact]
    untouched = [i for i in range(20) if offsets[i + 1] <= begin or offsets[i] >= end]
    records = records_of(content, offsets)
    for i in untouched:
        assert records[i] in recovered
    assert all(record in records for record in recovered)


def test_a_file_cut_short_is_an_error_that_says_what_to_do(tmp_path):
    content, offsets = some_records()
    path = tmp_path / "x.tfrecord"
    path.write_bytes(content.tobytes()[:-3])
    with pytest.raises(
        UsageError, match=rf"x.tfrecord: damaged at byte {offsets[-2]:,} of .*inspect_records.py repair"
    ):
        RecordFile(path)


def test_a_flipped_data_byte_is_an_error_when_read_and_not_before(tmp_path):
    content, offsets = some_records()
    content[offsets[4] + 20] ^= 1
    path = tmp_path / "x.tfrecord"
    path.write_bytes(content.tobytes())
    file = RecordFile(path)
    assert len(file.read(np.asarray([3, 5]))) == 2
    with pytest.raises(UsageError, match=rf"damaged at byte {offsets[4]:,}"):
        file.read(np.asarray([3, 4]))


def test_empty_file_has_no_records(tmp_path):
    path = tmp_path / "x.tfrecord"
    path.touch()
    assert len(RecordFile(path)) == 0
    assert scan(b"").intact == []


def test_scan_takes_maps(tmp_path):
    content, offsets = some_records()
    path = tmp_path / "x.tfrecord"
    path.write_bytes(content.tobytes())
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert len(scan(mapped).intact) == len(offsets) - 1


def test_crc_known_answer():
    # RFC 3720, B.4: 32 bytes of zeros.
    crc = 0x8A9136AA
    assert masked_crc32c(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_negative_and_large_integers_are_refused():
    for value in (-1, 2**31):
        with pytest.raises(ValueError, match="varints"):
            encode_examples({"x": np.asarray([[value]])})


@given(st.lists(st.integers(0, 4), max_size=3), st.integers(0, 3), st.sampled_from(["int32", "float32"]))
def test_a_column_is_an_array_of_any_shape_or_refused(shape, rows, dtype):
    width = int(np.prod(shape, dtype=int))
    values = np.arange(rows * width)
    column = Column(values, np.arange(rows + 1) * width)
    if width:
        found = column.array(tuple(shape), dtype)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, values.reshape(rows, *shape))
    if rows:
        with pytest.raises(MalformedRecordError, match=f"{width} values where {width + 1} are expected"):
            column.array((width + 1,), dtype)
    np.testing.assert_array_equal(column.padded(width + 2)[:, :width], values.reshape(rows, width))
    if rows and width:
        with pytest.raises(MalformedRecordError, match=f"{width} values where at most {width - 1} are expected"):
            column.padded(width - 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0x00, 0x01, 0x7F, 0x80, 0xFF]), max_size=4), min_size=1, max_size=5))
def test_varints_are_those_of_the_definition(runs):
    """Seven bits a byte, the lowest first; the top bit says that another byte follows: a run may not end there."""
    content, sizes = (
        np.asarray([byte for run in runs for byte in run], np.uint8),
        np.asarray([len(run) for run in runs]),
    )
    values, splits, bad = _decode_varints(content, sizes)
    assert bad.tolist() == [bool(run) and run[-1] >= 0x80 for run in runs]
    if bad.any():
        return
    expected = []
    for run in runs:
        found, shift = [0], 0
        for byte in run:
            found[-1] |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                found, shift = [*found, 0], 0
        expected.append(found[:-1])
    assert [values[begin:end].tolist() for begin, end in pairwise(splits)] == expected
