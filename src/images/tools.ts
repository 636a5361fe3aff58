/** The programs that each kind of build runs; run.ts knows which package has them. */

/** Of the kernel and the programs in every initrd. */
export const BASE_TOOLS = ['apt-get', 'apt-cache', 'dpkg-deb'] as const
/** Of Debian's disk besides. */
export const DISK_TOOLS = [...BASE_TOOLS, 'mmdebstrap', 'tar', 'mke2fs', 'qemu-img', 'setpriv'] as const
/** And for who is not root. */
export const USER_DISK_TOOLS = ['newuidmap', 'fakeroot'] as const
export const IMPORT_TOOLS = ['qemu-img', 'cp'] as const
