import warnings

import numpy as np
import pytest

from pcea.io.tables import read_columns, read_table, read_text_cloud

POINTS = np.array([[0.25, 1.5, -2.0], [1.75, 0.5, 3.25], [-0.5, 2.25, 1.0]])
NORMALS = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
COUNT = np.arange(3)[:, None]


def text(header, rows, *, delimiter=",", end="\n", mark="."):
    return header + "".join(delimiter.join(f"{v}".replace(".", mark) for v in row) + end for row in rows)


def join(*parts):
    return np.hstack(parts)


FILES = {
    # Columns by name.
    "names": text("x,y,z\n", POINTS),
    "pandas": text(",x,y,z\n", join(COUNT, POINTS)),
    "pandas of an array": text(",0,1,2\n", join(COUNT, POINTS)),
    "pandas of an array without its index": text("0,1,2\n", POINTS),
    "id": text("id,X,Y,Z\n", join(COUNT, POINTS)),
    "row names of R": text('"x" "y" "z"\n', join(COUNT, POINTS), delimiter=" "),
    "lidar": text("timestamp,x,y,z,intensity\n", join(COUNT + 1.7e9, POINTS, COUNT)),
    "paraview": text('"Intensity","Points:0","Points:1","Points:2"\n', join(COUNT, POINTS)),
    "colours first": text("R G B X Y Z\n", join(COUNT, COUNT, COUNT, POINTS), delimiter=" "),
    "another order": text("z;y;x\n", POINTS[:, ::-1], delimiter=";"),
    "CloudCompare": text("//X Y Z Intensity\n3\n", join(POINTS, COUNT), delimiter=" "),
    "CloudCompare's other": text("Coord. X;Coord. Y;Coord. Z;\n", POINTS, delimiter=";", end=";\n"),
    "units": text("X [m],Y (m),Z_m\n", POINTS),
    "map": text("Id,Easting,Northing,Elevation\n", join(COUNT, POINTS)),
    "x before pos_x": text("pos_x,pos_y,pos_z,x,y,z\n", join(POINTS + 9, POINTS)),
    "words in other columns": "x,y,z,kind\n" + "".join(f'{x},{y},"{z}",a car\n' for x, y, z in POINTS),
    "dates": "time;x;y;z\n" + "".join(f"2024-01-02 03:04;{x};{y};{z}\n" for x, y, z in POINTS),
    "missing values in other columns": "x,y,z,i\n" + "".join(f"{x},{y},{z},\n" for x, y, z in POINTS),
    # Columns without a name, and what else stands before the rows.
    "one column more": text("X Y Z\n", join(POINTS, COUNT + 0.5), delimiter=" "),
    "one column more behind //": text("//X Y Z\n", join(POINTS, POINTS), delimiter=" ").replace(
        " 0.25 1.5 -2.0\n", "\n"
    ),
    "normals without names": text("# x y z\n", join(POINTS, NORMALS), delimiter=" "),
    "a comma too many": text("x,y,z\n", POINTS, end=",\n"),
    "row names without quotes": text("x y z\n", join(COUNT + 7, POINTS), delimiter=" "),
    "all in quotes": '"x","y","z"\n' + "".join(f'"{x}","{y}","{z}","{i}"\n' for i, (x, y, z) in enumerate(POINTS)),
    "row names of words": "x,y,z\n" + "".join(f"p{i},{x},{y},{z}\n" for i, (x, y, z) in enumerate(POINTS)),
    "a remark behind the names": text("# id x y z\n# 300 points\n#----\n", join(COUNT, POINTS), delimiter=" "),
    "a word before the names": text("# columns: id x y z\n", join(COUNT, POINTS), delimiter=" "),
    "a unit behind the names": text("# id x y z [m]\n", join(COUNT, POINTS), delimiter=" "),
    "units between the names": text("id x (m) y (m) z (m)\n", join(COUNT, POINTS), delimiter=" "),
    "commas between the names": text("# id, x (m), y (m), z (m)\n", join(COUNT, POINTS), delimiter=" "),
    "a row of units": text("id,x,y,z\n-,m,m,m\n", join(COUNT, POINTS)),
    "a remark behind a header": text("id,x,y,z\n# made by foo\n", join(COUNT, POINTS)),
    "marks in words": "c,x,y,z\n"
    + "".join(f"{c},{x},{y},{z}\n" for c, (x, y, z) in zip(("#1", "50 % a", "a#1"), POINTS)),
    "rows that are left out": text("c,x,y,z\n", join(COUNT, POINTS)) + "#3,1,2,bad\n# the end\n",
    "addresses": "c,x,y,z\n" + "".join(f"http://a/{i},{x},{y},{z}\n" for i, (x, y, z) in enumerate(POINTS)),
    "semicolons in words": "x,y,z,name\n" + "".join(f'{x},{y},{z},"a;b|c"\n' for x, y, z in POINTS),
    "empty rows of Excel": text("x;y;z\n", POINTS, delimiter=";") + ";;\n;;\n",
    # Names of many programs.
    "pixels and metres": text("x,y,X,Y,Z\n", join(POINTS[:, :2] + 9, POINTS)),
    "pixels and positions": text("x,y,pos_x,pos_y,pos_z\n", join(POINTS[:, :2] + 9, POINTS)),
    "VeloView": text(
        '"intensity","laser_id","Points_m_XYZ:0","Points_m_XYZ:1","Points_m_XYZ:2"\n', join(COUNT, COUNT, POINTS)
    ),
    "rostopic": text("%time,field.x,field.y,field.z\n", join(COUNT + 1.6e18, POINTS)),
    "world": text("id,world_x,world_y,world_z\n", join(COUNT, POINTS)),
    "two ways to say it": text("n,X/Easting,Y/Northing,Z/Elev\n", join(COUNT, POINTS)),
    "feet": text("n,X_ft,Y_ft,Z_ft\n", join(COUNT, POINTS)),
    "Ansys": text("Node Number\tX Location (m)\tY Location (m)\tZ Location (m)\n", join(COUNT, POINTS), delimiter="\t"),
    "survey": text("P,N,E,H,D\n", join(COUNT, POINTS[:, [1, 0, 2]], COUNT)),
    "velocities": text("vel_x,vel_y,vel_z,base.x,base.y,base.z\n", join(POINTS + 9, POINTS)),
    # Delimiters and decimal marks.
    "semicolons": text("", POINTS, delimiter=";"),
    "semicolons and decimal commas": text("x;y;z\n", POINTS, delimiter=";", mark=","),
    "blanks and decimal commas": text("", POINTS, delimiter=" ", mark=","),
    "tabs and decimal commas": text("x\ty\tz\n", POINTS, delimiter="\t", mark=","),
    "tabs": text("x\ty\tz\n", POINTS, delimiter="\t"),
    "several blanks": text("   ", POINTS, delimiter="    ", end="  \n   "),
    "commas with blanks": text("x , y , z\n", POINTS, delimiter=" , "),
    "trailing commas": text("", POINTS, end=",\n"),
    "bars": text("x|y|z\n", POINTS, delimiter="|"),
    "commas, then blanks": "".join(f"{x},{y},{z} 255 0 0\n" for x, y, z in POINTS),
    # Lines that are no rows.
    "several header lines": text("Scan of a chair\n2024\n\nx y z\n", POINTS, delimiter=" "),
    "blank lines": text("\n\n", POINTS, delimiter=" ", end="\n\n"),
    "a remark": text("# made on Monday by the scanner\n", POINTS, delimiter=" "),
    "remarks between": text("", POINTS, delimiter=" ", end="  // seen\n// a row\n"),
    "number of rows": text("3\n", POINTS, delimiter=" "),
    "two scans": text("2\n", POINTS[:2], delimiter=" ") + text("1\n", POINTS[2:], delimiter=" "),
    "many columns": text("", join(POINTS, np.tile(COUNT, 20)), delimiter=" "),
    "Windows": text("x,y,z\r\n", POINTS, end="\r\n"),
    "Macintosh": text("", POINTS, end="\r"),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_points_come_out_whatever_the_table_looks_like(tmp_path, content, encoding):
    (tmp_path / "a.txt").write_bytes(content.encode(encoding))
    np.testing.assert_array_equal(read_text_cloud(tmp_path / "a.txt")[:, :3], POINTS)


NORMALS = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize("index", [True, False])
def test_arrays_of_pandas_have_the_columns_of_a_table_without_header(tmp_path, index):
    """Columns that are numbered are x y z [nx ny nz] [label], perhaps behind the index."""
    start = COUNT if index else COUNT[:, :0]
    for rest, header in (
        (NORMALS, "0,1,2,3,4,5"),
        (COUNT, "0,1,2,3"),
        (join(NORMALS, COUNT), "0,1,2,3,4,5,6"),
        (COUNT, "0,1,2,part"),
    ):
        (tmp_path / "a.csv").write_text(text(("," if index else "") + header + "\n", join(start, POINTS, rest)))
        rows = read_columns(tmp_path / "a.csv", labels=("part",)).rows
        np.testing.assert_array_equal(rows, join(POINTS, rest))


def test_names_in_cp1252(tmp_path):
    (tmp_path / "a.csv").write_bytes(text("Größe,x,y,z\n", join(COUNT, POINTS)).encode("cp1252"))
    np.testing.assert_array_equal(read_text_cloud(tmp_path / "a.csv"), POINTS)


@pytest.mark.parametrize("names", ["nx,ny,nz", "Normals:0,Normals:1,Normals:2", "normal_x,normal_y,normal_z"])
def test_normals_and_labels_by_name(tmp_path, names):
    (tmp_path / "a.csv").write_text(text(f"Class,{names},x,y,z\n", join(COUNT, NORMALS, POINTS)))
    np.testing.assert_array_equal(read_text_cloud(tmp_path / "a.csv"), join(POINTS, NORMALS))
    table = read_columns(tmp_path / "a.csv", labels=("label", "class"))
    assert table.names == ("x", "y", "z", "nx", "ny", "nz", "label")
    np.testing.assert_array_equal(table.rows, join(POINTS, NORMALS, COUNT))


def test_colours_are_no_normals_if_the_header_says_so(tmp_path):
    (tmp_path / "a.csv").write_text(text("x,y,z,r,g,b\n", join(POINTS, NORMALS)))
    assert read_text_cloud(tmp_path / "a.csv").shape == (3, 3)


@pytest.mark.parametrize("header", ["a,b,c\n", "latitude,longitude,height\n", "x,y\n", "# a b c\n"])
def test_a_header_that_is_not_understood_gives_a_warning(tmp_path, header):
    (tmp_path / "a.csv").write_text(text(header, POINTS))
    with pytest.warns(
        UserWarning, match=r"a.csv: the header '.*' does not name columns x, y and z of its rows, so the first"
    ):
        np.testing.assert_array_equal(read_text_cloud(tmp_path / "a.csv"), POINTS)


@pytest.mark.parametrize(
    "rows",
    [
        "1, 2, 3\n4, 5, 6\n",
        "1,2, 3\n4,5, 6\n",
        "1, 2,3\n4, 5,6\n",
        "1,2, 3, 4\n4,5, 6, 7\n",
        "1,2,3, 4,5,6\n7,8,9, 10,11,12\n",
        "1,2, 3,4, 5,6\n7, 8, 9, 10, 11, 12\n",
        "1,2, 3,4, 5,6\n7,8, 9,1, 2, 3\n4,5,6, 7, 8,9\n",
        "a,b,c,d,e,f\n1, 2, 3, 4, 5, 6\n",
        "x,y,z,d,e,f\n1,2, 3,4, 5,6\n",
        "1.5,2, 3.5,4, 5.5,6\n",
    ],
)
@pytest.mark.filterwarnings("ignore:.*does not name columns")
def test_integers_with_careless_blanks(tmp_path, rows):
    (tmp_path / "a.csv").write_text(rows)
    lines = [line for line in rows.splitlines() if line[0].isdecimal()]
    expected = [[float(cell) for cell in line.split(",")] for line in lines]
    np.testing.assert_array_equal(read_table(tmp_path / "a.csv"), expected)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("500,123.626  4,649,775.736  101.921\n", "separators of thousands"),
        ("9,625.730\t-9,264.210\t1.5\n", "separators of thousands"),
        ("X\tY\tZ\n9.625,730\t-9.264,210\t1.234,5\n", "separators of thousands"),
        ("0,625730,-0,264210,1,921268\n1,625730,0,064210,1,921268\n", "decimal commas"),
        ("x,y,z\n1,62,0,26,1,92\n1,63,0,26,1,92\n", "decimal commas"),
        ("id,x,y,z\n0,NA,NA,NA\n1,1.5,2.5,3.5\n", "'0,NA,NA,NA' is not a row of numbers, as 'NA' is none"),
        ("ncols 3\nnrows 2\nxllcorner 0\nNODATA_value -9999\n1 2 3\n4 5 6\n", "a grid of heights"),
        ("part,qty\nbolt,many\n,,\n", "is not a row of numbers"),
        (",\n", "is not a row of numbers"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path, rows, reason):
    (tmp_path / "a.txt").write_text(rows)
    with pytest.raises(ValueError, match=f"a.txt is not a table of numbers.*{reason}"):
        read_text_cloud(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "rows", ["100,200,300 255 0 0\n100,200,301 255 0 0\n", "1,234 2,345 0,456\n", "x y z\n1 2 3\n4 5 6\n"]
)
def test_what_only_looks_like_thousands(tmp_path, rows):
    (tmp_path / "a.txt").write_text(rows)
    first = read_text_cloud(tmp_path / "a.txt")[0, :3].tolist()
    assert first in ([100, 200, 300], [1.234, 2.345, 0.456], [1, 2, 3])


@pytest.mark.parametrize("header", ["x y z of a scan here\n", "# x and y and z, each in metres\n", "a_x,a_y,b_z\n"])
def test_a_header_that_names_other_columns_gives_a_warning(tmp_path, header):
    (tmp_path / "a.txt").write_text(text(header, POINTS, delimiter="," if header[0] == "a" else " "))
    with pytest.warns(UserWarning, match="does not name columns x, y and z of its rows"):
        read_text_cloud(tmp_path / "a.txt")


def test_a_first_column_that_counts_the_rows_gives_a_warning(tmp_path):
    points = np.random.default_rng(0).normal(size=(20, 3))
    (tmp_path / "a.txt").write_text(text("", join(np.arange(1, 21)[:, None], points)))
    with pytest.warns(UserWarning, match="its first column counts the rows"):
        read_text_cloud(tmp_path / "a.txt")


def test_x_that_counts_the_points_of_a_line_is_no_row_name(tmp_path):
    grid = np.stack(np.meshgrid(np.arange(30), np.arange(3)), -1).reshape(-1, 2)
    rows = join(grid, np.sin(grid[:, :1]), np.arange(90)[:, None] % 7)
    (tmp_path / "a.txt").write_text(text("X Y Z\n", rows, delimiter=" "))
    np.testing.assert_array_equal(read_text_cloud(tmp_path / "a.txt"), rows[:, :3])


def test_normals_with_names_may_have_any_length(tmp_path):
    (tmp_path / "a.csv").write_text(text("x,y,z,nx,ny,nz\n", join(POINTS, 3 * NORMALS)))
    np.testing.assert_array_equal(read_text_cloud(tmp_path / "a.csv"), join(POINTS, NORMALS))


def test_read_table_keeps_all_columns_in_order(tmp_path):
    (tmp_path / "a.txt").write_text(text("z y x\n", POINTS, delimiter=" "))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_table(tmp_path / "a.txt"), POINTS)
        np.testing.assert_array_equal(read_table(tmp_path / "a.txt", max_rows=2), POINTS[:2])
    (tmp_path / "a.txt").write_text(text("", POINTS, end="\n\n"))
    np.testing.assert_array_equal(read_table(tmp_path / "a.txt", max_rows=2), POINTS[:2])


def test_a_column_has_no_header(tmp_path):
    (tmp_path / "a.seg").write_text("3\n1\n2\n")
    np.testing.assert_array_equal(read_table(tmp_path / "a.seg", is_column=True), [[3], [1], [2]])
    (tmp_path / "a.seg").write_text("label\n1\n2\n")
    with pytest.raises(ValueError, match=r"a.seg is not a table of numbers: could not convert string 'label'"):
        read_table(tmp_path / "a.seg", is_column=True)


@pytest.mark.parametrize("content", ["", "\n \n", "x y z\n", "# x y z\n", "// nothing\n"])
def test_no_rows(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    assert read_text_cloud(tmp_path / "a.txt").shape == (0, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello\nworld of points\n", "'world of points' is not a row of numbers"),
        (b"1 2 3 chair\n", "'1 2 3 chair' is not a row of numbers, as 'chair' is none"),
        (b"1,2,3,back leg\n", "'1,2,3,back leg' is not a row of numbers, as 'back leg' is none"),
        (b"1 2 3\n1 2\n", "the number of columns changed from 3 to 2 at row 2"),
        (b"1.234,50;2.345,60;0,10\n", "'1.234,50;2.345,60;0,10' is not a row of numbers"),
        (b"6,370, 2,698, 0,410\n1,5, -2,5, 1,25\n", "'6,370, 2,698, 0,410' seems to have decimal commas"),
        (b"x, y, z\n6,370, 2,698, 0,410\n1,5, 2, 1,25\n", "'6,370, 2,698, 0,410' seems to have decimal commas"),
        (b"# scan\n6,370,  2,698,  0\n1,5,  2,5,  0  # seen\n", "write decimal points, semicolons between"),
        (b"x,y,z\n1,2,3\n1,,3\n", "could not convert string '' to float64 at row 1, column 2"),
        (b"4\n1 2 3\n1 2 3\n", "it ends before its 4 rows"),
        (b"1\n1 2 3\n3\n1 2 3\n", "it ends before the 3 rows of its last scan"),
        (b"\x89PNG\r\n\xff", "is not a row of numbers"),
        (b"1 2 3\n\0\0\0", "it is binary"),
        (b"\xff\xfe1 2", "truncated data"),
    ],
)
def test_other_text(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a.txt is not a table of numbers: .*{message}") as caught:
        read_text_cloud(tmp_path / "a.txt")
    assert "\n" not in str(caught.value)


def test_between_blanks_a_scan_may_begin_at_0_1_2(tmp_path):
    points = [[0, 1, 2], [0.5, 1, 2], [0.25, 0.75, 3]]
    (tmp_path / "a.xyz").write_text("0 1 2\n0.5 1 2\n0.25 0.75 3\n")
    np.testing.assert_array_equal(read_text_cloud(tmp_path / "a.xyz"), points)
    np.testing.assert_array_equal(read_table(tmp_path / "a.xyz"), points)
    # Below an index of pandas there is a column more than its first row has.
    (tmp_path / "a.txt").write_text(text(" 0 1 2\n", join(COUNT, POINTS), delimiter=" "))
    np.testing.assert_array_equal(read_text_cloud(tmp_path / "a.txt"), POINTS)


@pytest.mark.parametrize(
    ("name", "header", "columns", "width"),
    [
        ("a.xyzrgb", "", NORMALS, 3),
        ("a.xyzrgb", "x y z nx ny nz\n", NORMALS, 6),
        ("a.PTS", "3\n", join(NORMALS, COUNT), 3),
        ("a.pts", "", NORMALS, 6),
        ("a.xyz", "", join(NORMALS, COUNT), 6),
    ],
)
def test_colours_of_scanners_are_no_normals(tmp_path, name, header, columns, width):
    """Whatever they look like: red is 1 0 0."""
    (tmp_path / name).write_text(text(header, join(POINTS, columns), delimiter=" "))
    np.testing.assert_array_equal(read_text_cloud(tmp_path / name), join(POINTS, columns)[:, :width])
