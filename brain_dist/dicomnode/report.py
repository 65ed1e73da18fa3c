"""A prediction about a DICOM series as a Structured Report: Comprehensive SR with template TID 1500.

One report for a series: first the notice and a conclusion in words, then a measurement group for the series (if it has
several slices) and one for each slice. An evaluated group has its class as a qualitative evaluation, the probability of
each class as a measurement, and the algorithm with the sha256 of its weights; one that is not evaluated has the reason
and never a class. The report has the study, the patient and the order of its images, is not verified, and its
identifiers depend on nothing but the images, the model and the answers: the same evaluation is the same instance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brain_dist import __version__
from brain_dist.dicomnode import codes
from brain_dist.dicomnode.header import PATIENT_AND_STUDY, Header
from brain_dist.prediction.answers import MEAN, UNLIKE, Prediction, calibration_in_use, mean_of_slices
from brain_dist.stream.contract import Contract

NAME = "brain_dist"
DESCRIPTION = "brain_dist: classes of images, research only"
NOTICE = "Not a medical device. For research only, not for diagnosis or treatment. Not verified by a person."
DIGITS = 4  # of probabilities
SERIES_NUMBER = 9900  # of the reports' series in a study, far from those of scanners


@dataclass(frozen=True)
class Image:
    """An image of a series with what the model says about its slices.

    Attributes:
        header: its header.
        predictions: one for each slice that was wanted; a file with one slice has one.
    """

    header: Header
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True)
class _Slice:
    """A slice of the series: its place, the prediction, and why it does not count."""

    header: Header
    prediction: Prediction
    reason: str | None

    @property
    def frame(self) -> int | None:
        frame = self.prediction.frame
        return None if frame is None or frame == MEAN else int(frame)

    @property
    def name(self) -> str:
        number = f"Image {self.header.number}" if self.header.number else "Image"
        return number if self.frame is None else f"{number}, frame {self.frame}"


@dataclass(frozen=True)
class Report:
    """A report.

    Attributes:
        dataset: the instance, with its file meta information.
        uid: its SOP instance UID.
        summary: its conclusion in words, which name no patient.
    """

    dataset: Any
    uid: str
    summary: str

    def encode(self) -> bytes:
        """The bytes of its file."""
        from pydicom.filebase import DicomBytesIO

        buffer = DicomBytesIO()
        self.dataset.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()


def build_report(images: Sequence[Image], contract: Contract, missing: int = 0) -> Report:
    """The report about the images of one series.

    Args:
        images: at least one; several are ordered by their numbers.
        contract: the model's classes, weights and calibration.
        missing: images of the series that the sender offered and that were refused.
    """
    from highdicom.sr import ComprehensiveSR

    ordered = sorted(images, key=lambda image: (image.header.number, str(image.header.evidence.SOPInstanceUID)))
    slices = [_slice(image.header, each) for image in ordered for each in image.predictions if each.frame != MEAN]
    summary = _summary(slices, missing)
    study, series = ordered[0].header.series
    model = _fingerprint(contract)
    facts = [f"{each.header.evidence.SOPInstanceUID} {each.frame} {each.reason or _facts(each)}" for each in slices]
    uid = codes.derived_uid("report", study, series, model, str(missing), *facts)
    groups = [_group(each.name, [each], each.prediction, each.reason, contract, uid) for each in slices]
    if len(slices) > 1:
        groups.insert(0, _series_group(slices, contract, uid))
    dataset = ComprehensiveSR(
        evidence=[image.header.evidence for image in ordered],
        content=_document(groups, summary, ordered[0].header.modality, contract)[0],
        series_instance_uid=codes.derived_uid("series", study, model),
        series_number=SERIES_NUMBER,
        sop_instance_uid=uid,
        instance_number=ordered[0].header.series_number,
        manufacturer=NAME,
        manufacturer_model_name=NAME,
        software_versions=__version__,
        series_description=DESCRIPTION,
        is_complete=True,
        is_final=False,
        is_verified=False,
        coding_schemes=[_coding_scheme()],
    )
    return Report(dataset, uid, summary)


def _slice(header: Header, prediction: Prediction) -> _Slice:
    """The slice with the reason, if there is one, for which no class may be stated."""
    reason = header.refusal
    if reason is None and prediction.error is not None:
        reason = f"the file {prediction.error}"
    if reason is None and prediction.verdict == UNLIKE:
        reason = "the image is blank"
        if prediction.ood_p is not None:
            reason += f" or unlike the images of the training (p-value {prediction.ood_p:.{DIGITS}f})"
    return _Slice(header, prediction, reason)


def _facts(each: _Slice) -> str:
    """What decides the content of an evaluated slice."""
    prediction = each.prediction
    probabilities = [f"{value:.{DIGITS}f}" for value in prediction.probabilities.values()]
    return f"{prediction.label} {probabilities} {prediction.set} {prediction.ood_p} {prediction.verdict}"


def _summary(slices: Sequence[_Slice], missing: int) -> str:
    """The conclusion of a series in words."""
    evaluated = [each.prediction for each in slices if each.reason is None]
    if not evaluated:
        reasons = list(dict.fromkeys(each.reason for each in slices))
        text = f"Not evaluated: {'; '.join(str(reason) for reason in reasons[:3])}."
    else:
        mean = mean_of_slices(evaluated) or evaluated[0]
        text = f"{mean.label}, probability {mean.probability:.2f}"
        if len(slices) == 1:
            text += "." if mean.set is None else f"; set of classes: {', '.join(mean.set) or 'none'}."
        else:
            text += f": mean over {len(evaluated)} of {len(slices)} images."
        if len(evaluated) < len(slices):
            text += f" {len(slices) - len(evaluated)} not evaluated."
    if missing:
        text += f" Incomplete: {missing} images of this series were refused when it was received; send it again."
    return text


def _series_group(slices: Sequence[_Slice], contract: Contract, uid: str) -> Any:
    """The group of the whole series: the mean over the slices that were evaluated."""
    evaluated = [each for each in slices if each.reason is None]
    if not evaluated:
        return _group("Series", slices, None, "no image of the series could be evaluated", contract, uid)
    mean = mean_of_slices([each.prediction for each in evaluated]) or evaluated[0].prediction
    return _group("Series", evaluated, mean, None, contract, uid)


def _group(
    name: str, slices: Sequence[_Slice], prediction: Prediction | None, reason: str | None, contract: Contract, uid: str
) -> Any:
    """A measurement group of TID 1501 about some slices."""
    from highdicom.sr import (
        AlgorithmIdentification,
        Measurement,
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        SourceImageForMeasurementGroup,
        TrackingIdentifier,
    )
    from pydicom.sr.codedict import codes as standard

    calibration = calibration_in_use(contract)
    evaluations = [(codes.EVALUATION, codes.private_code(*(codes.NOT_EVALUATED if reason else codes.EVALUATED)))]
    numbers: list[tuple[Any, float]] = []
    texts: list[tuple[tuple[str, str], str]] = []
    if reason is not None:
        texts.append((codes.REASON, f"{reason[0].upper()}{reason[1:]}."))
    elif prediction is not None:
        evaluations.append((codes.CLASS, codes.class_code(str(prediction.label))))
        numbers = [
            (codes.class_code(each, "P_", f"Probability of {each}"), value)
            for each, value in prediction.probabilities.items()
        ]
        if prediction.ood_p is not None:
            numbers.append((codes.private_code(*codes.P_VALUE), prediction.ood_p))
        if prediction.verdict in codes.VERDICTS:
            evaluations.append((codes.VERDICT, codes.private_code(*codes.VERDICTS[prediction.verdict])))
        if prediction.set is not None and calibration is not None:
            texts.append((codes.SET, _set_in_words(prediction.set, calibration.alpha)))
        if len(slices) > 1:
            texts.append((codes.NOTICE, f"Mean of the logarithms of the probabilities over {len(slices)} images."))
    uids = [str(each.header.evidence.SOPInstanceUID) for each in slices]
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(codes.derived_uid("group", uid, name, *uids), name),
        algorithm_id=AlgorithmIdentification(NAME, __version__, parameters=_parameters(contract)),
        measurements=[
            Measurement(number, round(value, DIGITS), standard.UCUM.NoUnits) for number, value in numbers
        ] or None,
        qualitative_evaluations=[
            QualitativeEvaluation(codes.private_code(*question), value) for question, value in evaluations
        ],
        source_images=[
            SourceImageForMeasurementGroup(
                each.header.evidence.SOPClassUID, each.header.evidence.SOPInstanceUID,
                None if each.frame is None else [each.frame],
            )
            for each in slices
        ],
    )  # fmt: skip
    group[0].ContentSequence.extend(_text(codes.private_code(*question), text) for question, text in texts)
    return group


def _document(groups: Sequence[Any], summary: str, modality: str, contract: Contract) -> Any:
    """The content tree of TID 1500."""
    from highdicom.sr import (
        DeviceObserverIdentifyingAttributes,
        MeasurementReport,
        ObservationContext,
        ObserverContext,
    )
    from pydicom.sr.codedict import codes as standard

    device = DeviceObserverIdentifyingAttributes(
        uid=codes.derived_uid("device", NAME, __version__, _fingerprint(contract)), name=NAME, model_name=__version__
    )
    document = MeasurementReport(
        observation_context=ObservationContext(ObserverContext(standard.DCM.Device, device)),
        procedure_reported=(
            standard.LN.MRIUnspecifiedBodyRegion if modality == "MR" else standard.cid100.ImagingProcedure
        ),
        imaging_measurements=groups,
    )
    content = document[0].ContentSequence
    notice = _text(standard.DCM.Comment, NOTICE), _text(standard.DCM.Conclusion, summary)
    measurements = content[-1]
    del content[-1]
    content.extend([*notice, measurements])
    return document


def _text(name: Any, value: str) -> Any:
    from highdicom.sr import RelationshipTypeValues, TextContentItem

    return TextContentItem(name, value, RelationshipTypeValues.CONTAINS)


def _set_in_words(members: Sequence[str], alpha: float) -> str:
    share = f"{100 * (1 - alpha):g} %"
    if not members:
        return f"No class: none is likely enough for sets that contain the true class of {share} of images."
    return f"{', '.join(members)}: such sets contain the true class of {share} of images like those of the calibration."


def _parameters(contract: Contract) -> list[str]:
    """What identifies the model, as parameters of the algorithm."""
    weights, calibration = contract.weights, calibration_in_use(contract)
    return [
        f"weights sha256 {weights.sha256 if weights else 'unknown'}",
        f"training data sha256 {contract.dataset_version}",
        f"classes {', '.join(contract.classes)}",
        "not calibrated" if calibration is None else f"calibrated, temperature {calibration.temperature:.4f}",
    ]


def _fingerprint(contract: Contract) -> str:
    return codes.derived_uid(__version__, contract.to_json())


def _coding_scheme() -> Any:
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    return CodingSchemeIdentificationItem(
        codes.SCHEME, name="Codes of brain_dist", version="1", responsible_organization=NAME
    )


def write_report(folder: Path, report: Report) -> Path:
    """Write a report as ``UID.dcm``. One that is already there is kept if it says the same of the patient, too.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    from brain_dist.common.files import write_atomically

    path = folder / f"{report.uid}.dcm"
    if not path.exists() or not _is_of_same_patient(path, report):
        write_atomically(path, report.encode())
    return path


def _is_of_same_patient(path: Path, report: Report) -> bool:
    """Whether a file has the patient and the study of a report: they may have been corrected since it was written."""
    from pydicom import dcmread

    try:
        earlier = dcmread(path, specific_tags=list(PATIENT_AND_STUDY))
        return all(earlier.get(keyword) == report.dataset.get(keyword) for keyword in PATIENT_AND_STUDY)
    except Exception:  # whatever pydicom raises about a damaged file
        return False
