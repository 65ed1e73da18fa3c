# ruff: noqa
"""Names that vulture takes for unused, because a framework, a template or a file format uses them."""

from typing import Any

_: Any

# Python
_.__getattr__
_.__dir__
_.tempdir  # tempfile
_.mtime  # tarfile
_.handle_starttag  # html.parser
_.handle_endtag
_.handle_data
_.do_GET  # http.server
_.log_message
# options of a command that a test defines
_.max_size
# pytest
_.pytestmark
_.pytest_collection_modifyitems
# scikit-learn
_.classes_
_.decision_function
# onnxruntime
_.get_next
_.intra_op_num_threads
_.log_severity_level
# torch
_.benchmark
_.allow_tf32
_._shutdown
_.check_overflow  # deepspeed
_._check_input_dim
_.ctx
# jinja, and fields that templates read
_.filters
_.tone
# columns of the predictions table and keys of the manifest
_.logit
_.builder
_.source_listing_sha256
# DICOM
_.BitsAllocated
_.BitsStored
_.HighBit
_.NumberOfFrames
_.PhotometricInterpretation
_.PixelData
_.PixelRepresentation
_.PatientSex
_.SamplesPerPixel
_.SOPClassUID
_.SOPInstanceUID
_.SpecificCharacterSet
_.TransferSyntaxUID
_.VOILUTFunction
_.file_meta
# pydicom
_.is_undefined_length
# pynetdicom
_.AffectedSOPClassUID
_.MessageID
_.Priority
_.acse_timeout
_.connection_timeout
_.dimse_timeout
_.maximum_associations
_.maximum_pdu_size
_.network_timeout
_.require_called_aet
_.require_calling_aet
# fsspec
_.protocol
_._strip_protocol
# deepspeed
_.__compatible_ops__
# fields of the OpenAPI document
_.notice
_.input_size
_.ood
# uvicorn
_.handle_exit
_.force_exit
_.should_exit
# litserve
_.decode_request
_.unbatch
_.encode_response
