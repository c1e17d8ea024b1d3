"""Ceph's S3 gateway from Debian's packages: a monitor, an OSD in memory and radosgw, each a process on loopback."""

import contextlib
import shutil
import subprocess
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path

from pipelines.serve import free_ports

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
PACKAGES = "radosgw ceph-mon ceph-osd ceph-common"
CONFIG = """[global]
fsid = {fsid}
keyring = {folder}/keyring
mon_host = [v2:127.0.0.1:{ports[0]},v1:127.0.0.1:{ports[1]}]
run_dir = {folder}
admin_socket =
log_file = {folder}/$name.log
pid_file =
osd_pool_default_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 1073741824
mon_data = {folder}/mon
osd_data = {folder}/osd
rgw_data = {folder}/rgw
rgw_frontends = beast endpoint=127.0.0.1:{ports[2]}
"""


def missing():
    """Programs that are not here."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextlib.contextmanager
def server(access_key, secret_key):
    """A gateway for the keys of tests/support/s3.py; gives its port."""
    with tempfile.TemporaryDirectory(prefix="nvg-ceph-") as name, contextlib.ExitStack() as stack:
        folder, fsid, disk = Path(name), str(uuid.uuid4()), str(uuid.uuid4())
        ports = free_ports(3)
        (folder / "ceph.conf").write_text(CONFIG.format(folder=folder, fsid=fsid, ports=ports))
        for part in ("mon", "osd", "rgw"):
            (folder / part).mkdir()

        def run(*words):
            command = [word.format(folder=folder) for word in words]
            subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def start(*words):
            command = [*(word.format(folder=folder) for word in words), "-f", "-c", f"{folder}/ceph.conf"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        key = ("--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        run("ceph-authtool", "--create-keyring", "{folder}/keyring", *key)
        for who in ("client.admin", "client.rgw", "osd.0"):
            rights = [word for service in ("mon", "osd") for word in ("--cap", service, "allow *")]
            run("ceph-authtool", "{folder}/keyring", "--gen-key", "-n", who, *rights)
        address = f"[v2:127.0.0.1:{ports[0]},v1:127.0.0.1:{ports[1]}]"
        run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, "{folder}/monmap")
        conf = ("-c", "{folder}/ceph.conf")
        run("ceph-mon", "-i", "a", "--mkfs", "--monmap", "{folder}/monmap", "--keyring", "{folder}/keyring", *conf)
        start("ceph-mon", "-i", "a")
        run("ceph", *conf, "osd", "new", disk)
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk, *conf)
        start("ceph-osd", "-i", "0")
        gateway = start("radosgw", "-n", "client.rgw")
        end = time.time() + 120
        while True:
            assert gateway.poll() is None and time.time() < end, "radosgw did not start"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{ports[2]}/", timeout=2).close()
                break
            time.sleep(0.2)
        keys = ["--access-key", access_key, "--secret-key", secret_key]
        user = ["user", "create", "--uid", "nvg", "--display-name", "nvg"]
        run("radosgw-admin", "-n", "client.rgw", *conf, *user, *keys)
        yield ports[2]
