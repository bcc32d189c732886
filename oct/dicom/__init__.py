"""OPT DICOM files (Ophthalmic Tomography Image Storage) → headers, frames, and volumes on a grid."""
