# SPDX-License-Identifier: Apache-2.0
"""The pydantic models of the YAML's top level (operators bring their own `Settings`)."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Port = Annotated[int, Field(ge=1, le=65535)]
AETitle = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[\x20-\x5b\x5d-\x7e]+$")]
Name = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f"must be an address or a network such as 192.0.2.0/24, got {text!r}") from error


Network = Annotated[str, AfterValidator(_network)]


class Model(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Site(Model):
    name: Name = Field(description="Name of this box; appears in logs, metrics and results.", examples=["mri-1"])
    data_dir: Path = Field(Path("/var/lib/nearscan"), description="Folder of the durable buffer. Local disk only.")
    run_dir: Path | None = Field(
        None, description="Folder of the live bus' sockets. Default: a 'run' folder in data_dir."
    )
    device: Literal["auto", "gpu", "cpu"] = Field(
        "auto", description="Where to compute. 'gpu' without a GPU is an error; 'auto' says once what it chose."
    )

    @property
    def sockets(self) -> Path:
        """Folder of the live bus."""
        return self.run_dir or self.data_dir / "run"

    @property
    def accepted_file(self) -> Path:
        """Copy of the newest file that was found to be right: what the processes run with."""
        return self.sockets / "site.yaml"


class ListenDicom(Model):
    ae_title: AETitle = Field("NEARSCAN", description="Our application entity title.")
    port: Port = Field(11112, description="TCP port of the DICOM listener.")
    bind: str = Field("0.0.0.0", description="Address to listen on.")
    max_associations: int = Field(64, ge=1, le=1000, description="Associations served at one time; more are rejected.")
    max_per_address: int = Field(
        16, ge=1, le=1000, description="Associations of one address, so that no peer takes the slots of another."
    )


class ListenTls(Model):
    certificate: Path = Field(description="PEM file of our certificate chain.", examples=["/etc/nearscan/tls.crt"])
    key: Path = Field(description="PEM file of its private key.", examples=["/etc/nearscan/tls.key"])
    ca: Path | None = Field(None, description="PEM file of the CA whose certificates peers must show. None: any peer.")


class ListenDicomTls(ListenTls):
    port: Port = Field(2762, description="TCP port of the DICOM listener with TLS.")
    bind: str = Field("0.0.0.0", description="Address to listen on.")


class ListenDicomweb(Model):
    port: Port = Field(8042, description="TCP port of the DICOMweb service (STOW-RS, QIDO-RS, WADO-RS).")
    bind: str = Field("127.0.0.1", description="Address to listen on.")
    tls: ListenTls | None = Field(None, description="Serve HTTPS, with client certificates where `ca` is set.")
    token_file: Path | None = Field(
        None, description="File with a bearer token that every request must bring. None: whoever reaches it may."
    )
    max_uploads: int = Field(8, ge=1, le=64, description="Uploads served at one time; more are told to come later.")
    max_per_address: int = Field(
        6, ge=1, le=64, description="Uploads of one address, so that no peer takes the slots of another."
    )


class Peer(Model):
    ae_title: AETitle = Field(description="Its AE title.", examples=["MR_SCANNER"])
    host: str = Field(min_length=1, description="Its address; it may call from no other.", examples=["192.0.2.10"])
    port: Port | None = Field(None, description="Where it listens, for reports of storage commitment.")


class Listen(Model):
    dicom: ListenDicom | None = Field(None, description="DICOM listener (C-ECHO, C-STORE).")
    dicom_tls: ListenDicomTls | None = Field(
        None, description="A second DICOM listener, with TLS 1.2 or 1.3; needs `dicom`, whose AE title it has."
    )
    dicomweb: ListenDicomweb | None = Field(
        None, description="DICOMweb service of the receiver; needs `dicom`. Absent: none."
    )
    peers: dict[Name, Peer] = Field(
        default_factory=dict,
        description="Who may open associations, by name. Empty: everybody who knows our AE title.",
        examples=["mr-1"],
    )

    @property
    def our_ae_title(self) -> str:
        """What we call ourselves when we report to a peer."""
        return (self.dicom or ListenDicom()).ae_title


class DicomDestination(Model):
    host: str = Field(min_length=1, description="Host name or address of the PACS.", examples=["127.0.0.1"])
    port: Port = Field(description="TCP port of the PACS.", examples=[4242])
    ae_title: AETitle = Field(description="Called AE title.", examples=["ORTHANC"])
    calling_ae_title: AETitle = Field("NEARSCAN", description="Our AE title as this PACS knows it.")
    timeout_s: float = Field(10.0, gt=0, le=600, description="Longest wait for one answer, in seconds.")
    commit: Literal["none", "verify", "required"] = Field(
        "none",
        description="'required': nothing is deleted here before this PACS has committed to it (storage commitment). "
        "'verify': before C-FIND has found it there. 'none': its success status is enough.",
    )
    commit_timeout_h: float = Field(
        4.0,
        gt=0,
        le=720,
        description="A commitment that is not reported for so long is asked for again; what C-FIND does not find for "
        "so long is sent again. In hours.",
    )
    max_mb_s: float | None = Field(
        None,
        gt=0,
        le=10_000,
        description="Highest rate of sending on average, in MB/s.",
    )


class DicomwebDestination(Model):
    url: str = Field(
        pattern=r"^https?://[^\s/?#]+(/[^\s?#]*)?$",
        description="Base of the DICOMweb service; '/studies' is added.",
        examples=["https://pacs.example/dicom-web"],
    )
    token_file: Path | None = Field(None, description="File with the bearer token; read for each request.")
    ca: Path | None = Field(None, description="PEM file of the CA that signed the server's certificate.")
    timeout_s: float = Field(30.0, gt=0, le=600, description="Longest wait for one answer, in seconds.")
    commit: Literal["none", "verify"] = Field(
        "none",
        description="'verify': nothing is deleted here before QIDO-RS has found it there. 'none': its success status "
        "is enough.",
    )
    commit_timeout_h: float = Field(
        4.0, gt=0, le=720, description="What QIDO-RS does not find for so long is sent again, in hours."
    )
    max_mb_s: float | None = Field(
        None,
        gt=0,
        le=10_000,
        description="Highest rate of sending on average, in MB/s.",
    )


class Destination(Model):
    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["dicom"]}, {"required": ["dicomweb"]}]})
    dicom: DicomDestination | None = Field(None, description="Deliver by DICOM C-STORE.")
    dicomweb: DicomwebDestination | None = Field(None, description="Deliver by DICOMweb STOW-RS.")

    @property
    def peer(self) -> DicomDestination | DicomwebDestination:
        """The one of both that is set."""
        peer = self.dicom or self.dicomweb
        assert peer is not None
        return peer


Condition = str | float | tuple[str | float, ...]


class Route(Model):
    when: dict[str, Condition] = Field(
        default_factory=dict,
        description="Conditions, all of which must hold, by DICOM keyword or CallingAETitle: a text (`*` and `?` stand "
        "for any), a list of which one must match, or a range such as '>=3', '1..5'. None: every instance.",
        examples=[{"Modality": "CT", "StudyDescription": "*trauma*"}],
    )
    to: tuple[Name, ...] = Field(min_length=1, description="Names of the destinations to deliver to.")
    priority: int = Field(5, ge=0, le=9, description="Larger goes first; 9 is for what is urgent.")


class Operator(Model):
    """A source, stage or sink as written in the YAML, its own settings validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    name: str
    settings: Any  # the operator's own frozen Settings


class Pipeline(Model):
    source: Operator = Field(description="Where the data comes from.")
    stages: tuple[Operator, ...] = Field((), description="What is done, in order. A name, or a name with settings.")
    sinks: tuple[Operator, ...] = Field(min_length=1, description="Where results go. A name, or a name with settings.")
    deadline_ms: float = Field(
        500.0,
        ge=0,
        le=60_000,
        description="A frame older than this skips image-to-image stages, marked unprocessed. 0: never.",
    )
    queue_frames: int = Field(
        4, ge=1, le=64, description="Frames waiting between source and graph; then the source waits."
    )
    scheduler: Literal["greedy", "event_based"] = Field("greedy", description="Holoscan scheduler.")


class Buffer(Model):
    reserve_gb: float = Field(2.0, ge=0, le=10_000, description="Free disk space below which intake is refused, in GB.")
    retry_min_s: float = Field(1.0, gt=0, le=3600, description="First wait after a failed delivery, in seconds.")
    retry_max_s: float = Field(60.0, gt=0, le=86_400, description="Longest wait between delivery attempts, in seconds.")
    keep_delivered_h: float = Field(
        24.0, ge=0, le=8760, description="How long delivered results stay on this disk, in hours."
    )


class Series(Model):
    silence_s: float = Field(
        60.0,
        ge=1,
        le=86_400,
        description="A received series is complete when its MPPS, its count or its association says so; otherwise "
        "when nothing came for so long, in seconds.",
    )


class Console(Model):
    port: Port = Field(8080, description="TCP port of the console page and HTTP API.")
    bind: str = Field("127.0.0.1", description="Address to listen on. Another one than this machine's own needs `tls`.")
    tls: ListenTls | None = Field(None, description="Serve HTTPS, with client certificates where `ca` is set.")
    plain_http: bool = Field(
        False, description="Serve a network without TLS: who listens there reads images and passwords."
    )
    names: tuple[str, ...] = Field(
        (),
        description="Further host names by which browsers may call us; addresses and this machine's own name always "
        "may. Small letters.",
        examples=[["mri-1.hospital.example"]],
    )
    accounts: Path | None = Field(
        None, description="File of the accounts, written by 'nearscan users'. Default: accounts.json in site.data_dir."
    )
    kiosk: tuple[Network, ...] = Field(
        (),
        description="Addresses or networks of displays that see the live image and 3D without sign-in, and nothing "
        "else. Whoever reaches us through a proxy or tunnel on such a machine does, too.",
        examples=[["192.0.2.7"]],
    )
    metrics: tuple[Network, ...] = Field(
        ("127.0.0.0/8", "::1/128"),
        description="Addresses or networks that may read /metrics without sign-in. There is no patient data in it.",
    )
    idle_minutes: float = Field(
        30.0,
        gt=0,
        le=1440,
        description="Who touches the page no longer than that ago may use it; later it shows the live image and 3D "
        "only, until the password is typed again. In minutes.",
    )
    session_h: float = Field(
        12.0, gt=0, le=168, description="So long after the sign-in the password has to be typed again, in hours."
    )

    @property
    def exposure(self) -> str:
        """Why this address must not be listened on as it is, or nothing."""
        try:
            is_here = ipaddress.ip_address(self.bind).is_loopback
        except ValueError:
            is_here = self.bind == "localhost"
        if is_here or self.tls or self.plain_http:
            return ""
        return (
            f"console.bind: {self.bind!r} serves a network without TLS, where passwords and images can be read; "
            "give console.tls, or set console.plain_http: true"
        )


class Models(Model):
    dir: Path | None = Field(None, description="Folder of models and their cards. Default: the shipped ones.")
    recheck_every: int = Field(
        256,
        ge=0,
        le=1_000_000,
        description="One frame in so many is run again on the reference, in the background, and compared. 0: none.",
    )


class Settings(Model):
    """One file, one box."""

    site: Site = Field(description="This box.")
    listen: Listen = Field(Listen(), description="What other machines may open towards us.")
    destinations: dict[Name, Destination] = Field(
        default_factory=dict, description="Where results are owed to, by name.", examples=["pacs"]
    )
    routes: dict[Name, Route] = Field(
        default_factory=dict,
        description="Where received instances are owed to, by name of the rule. Every rule that matches counts.",
        examples=["everything"],
    )
    pipelines: dict[Name, Pipeline] = Field(default_factory=dict, description="What runs, by name; one process each.")
    series: Series = Field(Series(), description="When a received series is complete.")
    buffer: Buffer = Field(Buffer(), description="Durable buffer.")
    console: Console | None = Field(None, description="Web console; absent: no console.")
    models: Models = Field(Models(), description="Models.")
