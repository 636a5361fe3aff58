/**
 * Mounts: the classic calls and the newer ones by number, which util-linux of Debian 12 does not know (id-mapped mounts
 * came to mount(8) with 2.39).
 *
 * Every function returns 0 (or a descriptor) or -errno and acts on the mount namespace of the calling thread; with Node
 * that is the main thread, so nothing here is asynchronous.
 * Read: mount_setattr(2), open_tree(2), move_mount(2), the kernel's Documentation/filesystems/overlayfs.rst.
 */
import { close } from './fd.ts'
import { declare, result } from './libc.ts'

type Text = string | null
const c = {
  mount: declare<(source: Text, target: string, type: Text, flags: number, data: Text) => number>(
    'int mount(const char *, const char *, const char *, unsigned long, const char *)',
  ),
  umount2: declare<(target: string, flags: number) => number>('int umount2(const char *, int)'),
  mknod: declare<(path: string, mode: number, dev: number) => number>(
    'int mknod(const char *, unsigned int, unsigned long)',
  ),
  setxattr: declare<(path: string, name: string, value: string, size: number, flags: number) => number>(
    'int lsetxattr(const char *, const char *, const char *, size_t, int)',
  ),
  getxattr: declare<(path: string, name: string, value: Uint8Array, size: number) => number>(
    'long lgetxattr(const char *, const char *, void *, size_t)',
  ),
  openTree: declare<(n: number, dir: number, path: string, flags: number) => number>(
    'long syscall(long, int, const char *, unsigned int)',
  ),
  setattr: declare<(n: number, fd: number, path: string, flags: number, attr: Uint8Array, size: number) => number>(
    'long syscall(long, int, const char *, unsigned int, void *, size_t)',
  ),
  fsopen: declare<(n: number, type: string, flags: number) => number>('long syscall(long, const char *, unsigned int)'),
  fsconfig: declare<(n: number, fd: number, command: number, key: null, value: null, aux: number) => number>(
    'long syscall(long, int, unsigned int, const char *, const void *, int)',
  ),
  fsmount: declare<(n: number, fd: number, flags: number, attributes: number) => number>(
    'long syscall(long, int, unsigned int, unsigned int)',
  ),
  move: declare<(n: number, fromFd: number, from: string, toFd: number, to: string, flags: number) => number>(
    'long syscall(long, int, const char *, int, const char *, unsigned int)',
  ),
}

const SYS_open_tree = 428
const SYS_fsopen = 430
const SYS_fsconfig = 431
const SYS_fsmount = 432
const FSOPEN_CLOEXEC = 1
const FSCONFIG_CMD_CREATE = 6
const FSMOUNT_CLOEXEC = 1
const SYS_move_mount = 429
const SYS_mount_setattr = 442
const AT_FDCWD = -100
const AT_EMPTY_PATH = 0x1000
const OPEN_TREE_CLONE = 1
const O_CLOEXEC = 0o2000000
const MOVE_MOUNT_F_EMPTY_PATH = 4
const MOUNT_ATTR_RDONLY = 0x1n
const MOUNT_ATTR_NOSUID = 0x2n
const MOUNT_ATTR_NODEV = 0x4n
const MOUNT_ATTR_IDMAP = 0x00100000n

/** include/uapi/linux/mount.h */
export const MS_NOSUID = 2
export const MS_NODEV = 4
export const MS_BIND = 0x1000
export const MS_REC = 0x4000
export const MS_PRIVATE = 0x40000
const MNT_DETACH = 2

/** mount(2). */
export const mount = (source: string, target: string, type: string | null, flags = 0, data: string | null = null) =>
  result(c.mount(source, target, type, flags, data))

/** umount2(2) with MNT_DETACH: it is out of sight at once, whoever still uses it. */
export const detachMount = (target: string) => result(c.umount2(target, MNT_DETACH))

/**
 * Attach a copy of the mount that `path` is on, seen from `path`, at `target`, with its owners shifted by the mapping of the user
 * namespace that `usernsFd` is: read-only, or writable without set-id programs and devices. Mounts below `path` do not come along.
 * -EINVAL when the file system cannot be id-mapped, -EPERM without rights over it.
 */
export function bindIdMapped(path: string, target: string, usernsFd: number, access: 'ro' | 'rw' = 'ro'): number {
  const fd = result(c.openTree(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | O_CLOEXEC))
  if (fd < 0) return fd
  try {
    const attr = Buffer.alloc(32) // struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    const limits = access === 'ro' ? MOUNT_ATTR_RDONLY : MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    attr.writeBigUInt64LE(MOUNT_ATTR_IDMAP | limits, 0)
    attr.writeBigUInt64LE(BigInt(usernsFd), 24)
    const r = result(c.setattr(SYS_mount_setattr, fd, '', AT_EMPTY_PATH, attr, attr.length))
    if (r < 0) return r
    return result(c.move(SYS_move_mount, fd, '', AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH))
  } finally {
    close(fd)
  }
}

/**
 * A new mount of the file system `type` (sysfs shows the network namespace of the calling thread) that is nowhere in the tree: its root, by descriptor
 * (`/proc/self/fd/N/...` leads into it). Gone when that is closed. fsopen(2), fsmount(2), Linux 5.2. -EPERM in a user namespace that sees only parts of such a file system.
 */
export function detached(type: string): number {
  const context = result(c.fsopen(SYS_fsopen, type, FSOPEN_CLOEXEC))
  if (context < 0) return context
  try {
    const r = result(c.fsconfig(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, null, null, 0))
    return r < 0 ? r : result(c.fsmount(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0))
  } finally {
    close(context)
  }
}

/** The kernel's own packing of a device number (glibc's makedev for numbers below 4096/256). */
export const makedev = (major: number, minor: number): number => (major << 8) | minor

/** mknod(2) of a character device; mode is its permissions. Device 0:0 is overlayfs's whiteout. */
export const mknodChar = (path: string, mode: number, major: number, minor: number): number =>
  result(c.mknod(path, 0o020000 | mode, makedev(major, minor)))

/** An extended attribute of the file itself, not of what a link points to. */
export const setxattr = (path: string, name: string, value: string): number =>
  result(c.setxattr(path, name, value, value.length, 0))

/** A short one (256 bytes at most); undefined when the file has none of that name. */
export function getxattr(path: string, name: string): string | undefined {
  const value = Buffer.alloc(256)
  const n = result(c.getxattr(path, name, value, value.length))
  return n < 0 ? undefined : value.toString('latin1', 0, n)
}
