"""The scanner by folder, manufacturer and model."""

import pytest

from oct.indexing.devices import device_by_name, device_of


@pytest.mark.parametrize(
    ("path", "manufacturer", "model", "device"),
    [
        ("retinal_oct/structural_oct/topcon_maestro2/1/a.dcm", "", "", "topcon_maestro2"),
        ("structural_oct/scans/1/a.dcm", "Topcon", "DRI OCT Triton plus", "topcon_triton"),
        ("structural_oct/scans/1/a.dcm", "TOPCON", "Maestro 2", "topcon_maestro2"),
        ("structural_oct/scans/1/a.dcm", "Heidelberg Engineering", "SPECTRALIS", "heidelberg_spectralis"),
        ("structural_oct/scans/1/a.dcm", "Carl Zeiss Meditec", "CIRRUS HD-OCT 5000", "zeiss_cirrus"),
        ("structural_oct/topcon_triton/1/a.dcm", "Zeiss", "Cirrus", "topcon_triton"),  # the folder comes first
        ("retinal_oct/structural_oct/bioptigen_sdois/2001/a.dcm", "Bioptigen", "SDOIS", "bioptigen_sdois"),
        ("structural_oct/bioptigen_sdois/2001/od/a.dcm", "", "", "bioptigen_sdois"),
        ("Some Scanner/1/a.dcm", "", "", "some_scanner"),
        ("1/a.dcm", "Nidek", "RS-3000", "nidek_rs_3000"),
        ("structural_oct/1/a.dcm", "Topcon", "", "topcon"),  # neither 1 nor structural_oct is a device
        ("1/topcon_triton.dcm", "", "", "unknown"),  # the name of a file says nothing
    ],
)
def test_a_device_is_its_folder_then_its_makers_names_then_its_own_folder(path, manufacturer, model, device):
    assert device_of(path, manufacturer, model) == device


def test_a_first_maestro_is_not_a_maestro2():
    assert device_by_name("Topcon", "Maestro") == ""
