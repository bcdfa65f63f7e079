"""The commands on a store, all of them safe beside a server that runs on it."""

from __future__ import annotations

import gc as garbage
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pullthrough.commands import printing
from pullthrough.commands.opening import Opened, opened

if TYPE_CHECKING:
    from pullthrough.tending.eviction import Victim
    from pullthrough.tending.images import Image, Inventory, Name
    from pullthrough.tending.janitor import State
    from pullthrough.tending.verify import Rotten

F = TypeVar("F", bound=Callable[..., Any])

# What a command needs is imported in it: see opening.py.

_FEW = 3
"""Names of images that are shown of many."""


def _options(command: F) -> F:
    """Give a command what all of these take."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs."),
        click.option(
            "--config",
            type=click.Path(dir_okay=False, path_type=Path),
            help="The config.yml, looked for as by serve.",
        ),
    ):
        command = option(command)
    return command


# -- ls --------------------------------------------------------------------------------------------


@click.command()
@click.argument("repository", required=False)
@_options
def ls(repository: str | None, config: Path | None, as_json: bool) -> None:
    """List the images that are here, and whether all that they need is: it survives an outage.

    Size is what is here of an image. An index counts as complete with all its platforms. What only
    another image names, and signatures and the like within an index, are not listed.
    """
    from pullthrough.tending.images import Inventory

    # A hundred thousand things are made, and all of them stay: looking for garbage among them takes
    # as long as the rest.
    garbage.disable()
    with opened(config) as store:
        inventory = Inventory(store.layout, store.catalogue)
        images = list(inventory.images(repository))
        if as_json:
            printing.document({"images": [_image(image) for image in images]})
        elif images:
            headings = ("IMAGE", "PLATFORMS", "SIZE", "LAST USE", "COMPLETE")
            printing.table(headings, [_row(image) for image in images])
    if repository is not None and not images:
        raise click.ClickException(f"nothing is here of {printing.printable(repository)}")


def _image(image: Image) -> dict[str, Any]:
    return {
        "image": str(image.name),
        "repository": image.name.repository,
        "tag": image.name.tag,
        "digest": image.name.digest,
        "size": image.size,
        "used": printing.stamp(image.used),
        "complete": image.complete,
        "artifact": image.artifact or None,
        "platform": image.platform or None,
        "platforms": [
            {
                "platform": each.name,
                "digest": each.digest,
                "size": each.size,
                "complete": each.complete,
            }
            for each in image.platforms
        ],
    }


def _row(image: Image) -> tuple[str, ...]:
    complete = "yes" if image.complete else "no"
    platforms = image.platform or image.artifact or "-"
    if image.platforms:
        platforms = ", ".join(
            f"{each.name or '-'} {'yes' if each.complete else 'no'}" for each in image.platforms
        )
        if not image.complete:
            here = sum(each.complete for each in image.platforms)
            complete = f"{here} of {len(image.platforms)}"
    return (
        str(image.name), platforms, printing.size(image.size), printing.when(image.used), complete,
    )  # fmt: skip


# -- gc --------------------------------------------------------------------------------------------


@click.command()
@click.option("--dry-run", is_flag=True, help="Take nothing away, only say what would go.")
@_options
def gc(dry_run: bool, config: Path | None, as_json: bool) -> None:
    """Take away now what exceeds the bounds, and say what goes and why."""
    from pullthrough import parts
    from pullthrough.tending.images import Inventory
    from pullthrough.tending.janitor import Janitor

    with opened(config, with_bucket=True) as store, printing.working("applying the bounds"):
        inventory = Inventory(store.layout, store.catalogue)
        bounds = parts.bounds(store.config)
        mirrored = store.bucket is not None
        janitor = Janitor(store.layout, store.catalogue, bounds, mirrored, time.time)
        if dry_run:
            state, altogether, aside = janitor.plan()
            gone = [*altogether, *aside]
            kept = {victim.digest for victim in aside}
        else:
            state, gone = janitor.tidy()
            kept = {row.digest for row in store.catalogue.rows()}
        undeleted = None if dry_run else _deleted(store)
        needing = inventory.needing([victim.digest for victim in gone])
    freed = sum(victim.size for victim in gone)
    if as_json:
        victims = [_victim(each, needing, kept) for each in gone]
        printing.document({"dry_run": dry_run, "gone": victims, "freed": freed, **_state(state)})
    else:
        if gone:
            headings = ("DIGEST", "SIZE", "LAST USE", "FROM", "WHY", "IMAGES")
            printing.table(headings, [_line(each, needing, kept) for each in gone])
        things = f"{printing.counted(len(gone), 'thing')} {'would go' if dry_run else 'gone'}"
        click.echo(f"{things}, {printing.size(freed)}; {_said(state)}")
    if state.overpinned:
        click.echo("what is pinned exceeds the quota", err=True)
    if undeleted is not None:
        click.echo(undeleted, err=True)
    if state.overpinned or undeleted is not None:
        sys.exit(1)


def _deleted(store: Opened) -> str | None:
    """Delete from the bucket what is to leave it; return why not all of it did."""
    if store.bucket is None:
        return None
    from pullthrough.store.bucket import BucketError  # boto3, only where there is a bucket
    from pullthrough.tending.uploads import Mirror

    try:
        Mirror(store.layout, store.catalogue, store.bucket, lambda: False).bury()
    except BucketError as error:
        return f"{error}; what is left in it will be deleted when the bucket is back"
    return None


def _line(victim: Victim, needing: dict[str, list[Name]], kept: Iterable[str]) -> tuple[str, ...]:
    return (
        printing.short(victim.digest), printing.size(victim.size), printing.when(victim.used),
        _from(victim, kept), victim.reason.value, _few(needing.get(victim.digest, ())),
    )  # fmt: skip


def _victim(victim: Victim, needing: dict[str, list[Name]], kept: Iterable[str]) -> dict[str, Any]:
    return {
        "digest": victim.digest,
        "size": victim.size,
        "used": printing.stamp(victim.used),
        "reason": victim.reason.name.lower(),
        "from": _from(victim, kept),
        "images": [str(name) for name in needing.get(victim.digest, ())],
    }


def _from(victim: Victim, kept: Iterable[str]) -> str:
    """Return whether something leaves the store, or stays in the bucket."""
    return "disk" if victim.digest in kept else "store"


def _state(state: State) -> dict[str, Any]:
    return {
        "used": state.used, "quota": state.quota, "local_used": state.here,
        "local_quota": state.local, "pinned": state.pinned,
    }  # fmt: skip


def _said(state: State) -> str:
    def against(used: int, quota: int | None) -> str:
        bound = "no quota" if quota is None else f"of a quota of {printing.size(quota)}"
        return f"{printing.size(used)}, {bound}"

    said = f"now {against(state.used, state.quota)}"
    if state.local is not None:
        said += f"; on the disk {against(state.here, state.local)}"
    return said


def _few(names: Iterable[Name]) -> str:
    every = [str(name) for name in names]
    more = len(every) - _FEW
    return ", ".join(every[:_FEW]) + (f" and {more} more" if more > 0 else "")


# -- verify ----------------------------------------------------------------------------------------


@click.command()
@click.option("--repair", is_flag=True, help="Fetch what is rotten again, from the upstream.")
@_options
def verify(repair: bool, config: Path | None, as_json: bool) -> None:
    """Read everything, and set aside what is not what its digest says.

    Exit 1 while something is missing for that. What was set aside before counts too.
    """
    from pullthrough.store.reconcile import reconcile
    from pullthrough.tending.images import Inventory
    from pullthrough.tending.removal import tending
    from pullthrough.tending.verify import Verification

    with opened(config, with_bucket=True) as store:
        with printing.working("looking at what there is"), tending(store.layout):
            reconcile(store.layout, store.catalogue)
        rows = sorted(store.catalogue.rows())
        verification = Verification(store.layout, store.catalogue, store.bucket)
        with printing.progress("reading", sum(row.size for row in rows)) as progressed:
            found = [verification.verify(row, progressed) for row in rows]
        rotten = [each for each in found if each is not None]
        again = {each.digest for each in rotten}
        rotten += [each for each in verification.earlier() if each.digest not in again]
        failed = {each.digest: "not fetched again" for each in rotten if not each.left}
        if repair:
            failed = _repaired(store, [each for each in rotten if not each.left])
            verification.discard()
        needing = Inventory(store.layout, store.catalogue).needing([r.digest for r in rotten])
    if as_json:
        printing.document(
            {
                "checked": len(rows),
                "bytes": sum(row.size for row in rows),
                "rotten": [_rotten(each, needing, failed) for each in rotten],
            }
        )
    else:
        for each in rotten:
            click.echo(_mended(each, needing, failed))
        read = f"{printing.counted(len(rows), 'thing')}, {printing.size(sum(r.size for r in rows))}"
        click.echo(f"{read}: {len(rotten)} rotten, {len(rotten) - len(failed)} of them mended")
    if failed:
        sys.exit(1)


def _repaired(store: Opened, rotten: list[Rotten]) -> dict[str, str]:
    """Fetch again; return what could not be, with why."""
    from pullthrough.commands import repair
    from pullthrough.config import ConfigError

    if not rotten:
        return {}
    sizes = {each.digest: each.size for each in rotten}
    with printing.progress("fetching again", sum(sizes.values())) as progressed:
        try:
            return repair.fetch(
                store.config, store.layout, store.catalogue, list(sizes),
                lambda digest: progressed(sizes[digest]),
            )  # fmt: skip
        except ConfigError as error:
            return dict.fromkeys(sizes, str(error))


def _rotten(
    rotten: Rotten, needing: dict[str, list[Name]], failed: dict[str, str]
) -> dict[str, Any]:
    return {
        "digest": rotten.digest,
        "size": rotten.size,
        "places": list(rotten.places),
        "images": [str(name) for name in needing.get(rotten.digest, ())],
        "mended": rotten.digest not in failed,
        "why": failed.get(rotten.digest),
    }


def _mended(rotten: Rotten, needing: dict[str, list[Name]], failed: dict[str, str]) -> str:
    how = failed.get(rotten.digest)
    if how is None:
        how = f"the {rotten.left} has it" if rotten.left else "fetched again"
    of = _few(needing.get(rotten.digest, ()))
    whose = f" of {of}" if of else ""
    places = " and ".join(rotten.places)
    return f"{rotten.digest} ({printing.size(rotten.size)}){whose}: rotten ({places}), {how}"


# -- rm --------------------------------------------------------------------------------------------


@click.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@_options
def rm(images: tuple[str, ...], config: Path | None, as_json: bool) -> None:
    """Remove images, with all that no other image needs, pinned or not.

    IMAGE is repository:tag, repository@digest, or repository for all of it.
    """
    from pullthrough.tending.images import Inventory
    from pullthrough.tending.pins import pattern
    from pullthrough.tending.removal import Removal, tending

    wanted = [_reference(image) for image in images]
    with opened(config, with_bucket=True) as store:
        with tending(store.layout):
            inventory = Inventory(store.layout, store.catalogue)
            names = _found(inventory, images, wanted)
            repositories = {
                repository for repository, tag, digest in wanted if tag is digest is None
            }
            leaving = inventory.leaving(names, repositories)
            mirrored = store.bucket is not None
            removal = Removal(store.layout, store.catalogue, mirrored=mirrored)
            for tag_row in leaving.tags:
                removal.tag(tag_row)
            gone = removal.altogether(leaving.digests)
            for link in leaving.links:
                removal.link(link)
        busy = sorted(set(leaving.digests) - set(gone))
        undeleted = _deleted(store)
    pins = [pattern(text) for text in store.config.cache.pin]
    pinned = [n for n in names if any(pin.matches(n.repository, n.tag) for pin in pins)]
    freed = inventory.size(gone)
    if as_json:
        printing.document(
            {
                "removed": [str(name) for name in names],
                "pinned": [str(name) for name in pinned],
                "gone": gone,
                "freed": freed,
                "in_use": busy,
            }
        )
    else:
        for name in names:
            click.echo(f"removed {name}" + (", which is pinned" if name in pinned else ""))
        click.echo(f"{printing.counted(len(gone), 'thing')} gone, {printing.size(freed)}")
        if busy:
            click.echo(
                f"{printing.counted(len(busy), 'thing')} left, being read just now", err=True
            )
    if undeleted is not None:
        click.echo(undeleted, err=True)
    if busy or undeleted is not None:
        sys.exit(1)


def _reference(image: str) -> tuple[str, str | None, str | None]:
    """Return repository, tag and digest of what somebody calls an image."""
    from pullthrough.oci.digest import Digest
    from pullthrough.oci.errors import DigestInvalid, NameInvalid
    from pullthrough.oci.reference import Repository, Tag

    name, at, digest = image.partition("@")
    name, colon, tag = (name, "", "") if at else name.partition(":")
    try:
        return (
            Repository.parse(name).name,
            Tag.parse(tag).name if colon else None,
            str(Digest.parse(digest)) if at else None,
        )
    except (NameInvalid, DigestInvalid) as error:
        raise click.BadParameter(error.message, param_hint="IMAGE") from error


def _found(
    inventory: Inventory,
    images: tuple[str, ...],
    wanted: list[tuple[str, str | None, str | None]],
) -> list[Name]:
    """Return what is here by these names; what is not ends the command before anything goes."""
    names: dict[Name, None] = {}
    unknown = []
    for image, (repository, tag, digest) in zip(images, wanted, strict=True):
        found = inventory.named(repository, tag, digest)
        names.update(dict.fromkeys(found))
        whole = tag is digest is None
        if not found and not (whole and inventory.has(repository)):
            needing = inventory.needing([digest]).get(digest, []) if digest else []
            parts = [name for name in needing if name.repository == repository]
            unknown.append(f"{image} is {f'a part of {_few(parts)}' if parts else 'not here'}")
    if unknown:
        raise click.ClickException("; ".join(unknown))
    return list(names)


# -- reindex ---------------------------------------------------------------------------------------


@click.command()
@_options
def reindex(config: Path | None, as_json: bool) -> None:
    """Have the index say what the files say, and what the bucket has."""
    from pullthrough.store.reconcile import reconcile
    from pullthrough.tending.images import Inventory
    from pullthrough.tending.removal import tending

    with opened(config, with_bucket=True) as store:
        with printing.working("looking through the files"), tending(store.layout):
            reconcile(store.layout, store.catalogue)
        if store.bucket is not None:
            from pullthrough.tending.uploads import Mirror  # boto3, only where there is a bucket

            with printing.working("looking through the bucket"):
                Mirror(store.layout, store.catalogue, store.bucket, lambda: False).learn()
        rows, usage = store.catalogue.rows(), store.catalogue.usage()
        names = Inventory(store.layout, store.catalogue).names
    there = {
        "images": len(names),
        "repositories": len({name.repository for name in names}),
        "tags": sum(name.tag is not None for name in names),
        "on_disk": {"count": sum(row.here for row in rows), "bytes": usage.here},
        "in_bucket": None
        if store.bucket is None
        else {"count": sum(row.there for row in rows), "bytes": usage.there},
    }
    if as_json:
        printing.document(there)
        return
    images = printing.counted(len(names), "image")
    repositories = printing.counted(
        len({name.repository for name in names}), "repository", "repositories"
    )
    click.echo(f"{images} in {repositories}")
    disk = printing.counted(sum(row.here for row in rows), "thing")
    click.echo(f"on the disk: {disk}, {printing.size(usage.here)}")
    if store.bucket is not None:
        objects = printing.counted(sum(row.there for row in rows), "thing")
        click.echo(f"in the bucket: {objects}, {printing.size(usage.there)}")


ALL = (ls, gc, verify, rm, reindex)
