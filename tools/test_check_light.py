import zipfile

import check_light
import pytest
import workspace


@pytest.fixture
def wheels(tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "uv.toml").write_text("no-index = true\n")
    make_wheel(folder, "torch", requires=["sympy"])
    make_wheel(folder, "sympy")
    make_wheel(folder, "deepspeed")
    return folder


def make_wheel(folder, name, *, version="0.1.0", requires=(), source="", commands=(), modules=None):
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
    package = {f"{module}/{name}.py": text for name, text in (modules or {}).items()}
    files = {
        **(package or {f"{module}.py": source}),
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if commands:
        lines = ["[console_scripts]", *(f"{command} = {module}:main" for command in commands)]
        files[f"{info}/entry_points.txt"] = "\n".join(lines) + "\n"
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def test_a_file_that_the_wheel_lacks_is_named(wheels, tmp_path):
    make_wheel(wheels, "helper")
    source = tmp_path / "src"
    (source / "__pycache__").mkdir(parents=True)
    (source / "__pycache__" / "helper.pyc").touch()
    (source / "helper.py").touch()
    check_light.check_complete("helper", source, wheels)
    (source / "pages").mkdir()
    (source / "pages" / "page.css").touch()
    with pytest.raises(check_light.CheckError, match=r"wheel of helper lacks pages/page\.css$"):
        check_light.check_complete("helper", source, wheels)


def test_a_light_package_passes_and_the_verdict_counts_what_it_brings(wheels):
    make_wheel(wheels, "itg-model", requires=["torch"])
    verdict = check_light.check("itg-model", wheels, install_it=False)
    assert verdict.startswith("3 distributions, no datasets, deepspeed, itg-eval")


@pytest.mark.parametrize(
    ("built", "published"), [("0.1.1", "0.2.0"), ("0.2.0rc1", "0.1.0"), ("0.1.0", "0.1.0")]
)
def test_what_is_tried_is_what_was_built_whatever_the_index_has(
    built, published, wheels, tmp_path, monkeypatch
):
    broken = "raise SystemExit('not the one that was built')\n"
    for name in ("itg-data", "itg-model"):
        requires = ["itg-data>=0.1,<0.3"] if name == "itg-model" else []
        make_wheel(wheels, name, version=built, requires=requires)
        make_wheel(tmp_path, name, version=published, requires=requires, source=broken)
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    assert "; imports 1 modules" in check_light.check("itg-model", wheels, install_it=True)
    files = [wheels / f"{name}-{built}-py3-none-any.whl" for name in ("itg_data", "itg_model")]
    assert check_light.resolve("itg-model", wheels) == [
        f"itg-data @ {files[0].as_uri()}",
        f"itg-model @ {files[1].as_uri()}",
    ]


def test_a_sibling_that_was_not_built_comes_from_the_index(wheels, tmp_path, monkeypatch):
    make_wheel(wheels, "itg-model", requires=["itg-data>=0.1,<0.3"])
    make_wheel(tmp_path, "itg-data", version="0.2.0")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    assert "itg-data==0.2.0" in check_light.resolve("itg-model", wheels)


def test_a_built_sibling_out_of_range_fails(wheels):
    make_wheel(wheels, "itg-data", version="0.3.0")
    make_wheel(wheels, "itg-model", requires=["itg-data>=0.1,<0.3"])
    with pytest.raises(
        check_light.CheckError, match=r"itg-model==0\.1\.0 depends on itg-data>=0\.1,<0\.3"
    ):
        check_light.check("itg-model", wheels, install_it=False)


def test_a_forbidden_dependency_of_a_dependency_is_named(wheels):
    make_wheel(wheels, "helper", requires=["deepspeed"])
    make_wheel(wheels, "itg-model", requires=["torch", "helper"])
    with pytest.raises(check_light.CheckError, match=r"^brings deepspeed$"):
        check_light.check("itg-model", wheels, install_it=False)


def test_a_package_with_torch_only_may_bring_what_torch_brings_and_no_more(wheels):
    make_wheel(wheels, "itg-kernels", requires=["torch"])
    assert check_light.check("itg-kernels", wheels, install_it=False).endswith("all from torch")
    make_wheel(wheels, "helper")
    make_wheel(wheels, "itg-kernels", requires=["torch", "helper"])
    with pytest.raises(check_light.CheckError, match="brings helper, which torch does not"):
        check_light.check("itg-kernels", wheels, install_it=False)


def test_a_dependency_that_exists_nowhere_fails_with_uv_s_reason(wheels):
    make_wheel(wheels, "itg-model", requires=["itg-nowhere"])
    with pytest.raises(check_light.CheckError, match="itg-nowhere was not found"):
        check_light.check("itg-model", wheels, install_it=False)


def test_an_installed_package_is_imported_and_its_commands_asked_for_help(wheels):
    source = "import sys\ndef main():\n    return 0 if sys.argv[1:] == ['--help'] else 3\n"
    make_wheel(wheels, "itg-data", source=source, commands=["itg-data", "itg-look"])
    verdict = check_light.check("itg-data", wheels, install_it=True)
    assert "; imports 1 modules in " in verdict
    assert verdict.endswith(" s, itg-data --help, itg-look --help")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import torch\ndef main(): ...\n", "No module named 'torch'"),
        ("def main():\n    raise SystemExit(7)\n", "itg-data --help exits 7"),
    ],
)
def test_an_installed_package_that_does_not_work_alone_fails(wheels, source, message):
    make_wheel(wheels, "itg-data", source=source, commands=["itg-data"])
    with pytest.raises(check_light.CheckError, match=message):
        check_light.check("itg-data", wheels, install_it=True)


def test_a_module_may_stop_at_a_package_of_an_extra_and_at_no_other(wheels):
    make_wheel(wheels, "itg-data", modules={"__init__": "", "plot": "import matplotlib.pyplot"})
    with pytest.raises(check_light.CheckError, match="No module named 'matplotlib'"):
        check_light.check("itg-data", wheels, install_it=True)
    extra = ["matplotlib>=3 ; extra == 'plot'"]
    modules = {"__init__": "", "__main__": "1 / 0", "plot": "import matplotlib.pyplot"}
    make_wheel(wheels, "itg-data", requires=extra, modules=modules)
    verdict = check_light.check("itg-data", wheels, install_it=True)
    assert "; imports 1 modules in " in verdict


def test_every_package_of_the_workspace_has_a_rule():
    assert check_light.RULES.keys() == workspace.members().keys()


def test_an_unknown_package_is_refused(capsys):
    with pytest.raises(SystemExit):
        check_light.main(["itg-modle"])
    assert "got itg-modle" in capsys.readouterr().err
