/**
 * What root of a VM may do: the capabilities that its init and its commands can ever have.
 *
 * Whoever enters a user namespace gets every capability in it, and the whole bounding set (user_namespaces(7)); so the
 * set is cut after the way in and before the first program of the VM, and no exec in the VM brings a bit back: not a
 * setuid program, not file capabilities. What stays acts on the VM's own namespaces and on files of its own users; what
 * goes would be refused by the kernel for most of its uses anyway, and is cut so that a mistake there reaches nobody.
 *
 * The list names what stays: a capability that a later kernel invents is not there.
 * Gone, because a VM has no such thing: modules, raw I/O, clock, reboot and kexec, the kernel's log, audit, MAC policies, BPF and
 * perf, accounting, wake-ups and suspend, checkpoints, consoles, device nodes, immutable files and leases, limits of the machine.
 *
 * /proc and /sys: the masks of script.ts spare tools a stumble and are no wall; a VM's root can unmount them. The wall is that
 * those files belong to the host's root, who is nobody in the VM. Masks that cannot be taken off (made in a mount namespace
 * of the parent's) would also forbid every mount of a new /proc (the kernel's mount_too_revealing), and with it
 * `unshare --mount-proc` and containers inside a VM.
 * Read: capabilities(7), setpriv(1).
 */

/** As setpriv(1) names them. */
export const KEPT_CAPABILITIES = [
  // Users, groups and files of the VM: apt, dpkg, tar, su, sudo, setcap.
  'chown',
  'dac_override',
  'dac_read_search',
  'fowner',
  'fsetid',
  'setfcap',
  'setgid',
  'setuid',
  'setpcap',
  // Its processes: kill, strace, gdb, taskset.
  'kill',
  'sys_nice',
  'sys_ptrace',
  'ipc_lock',
  'ipc_owner',
  // Its network: ip, iptables, ping, tcpdump, ports below 1024.
  'net_admin',
  'net_bind_service',
  'net_raw',
  // Its mounts and namespaces: mount, chroot, unshare, hostname.
  'sys_admin',
  'sys_chroot',
] as const

/** setpriv's words: run what follows with nothing but the kept capabilities within reach. */
export const limitRights: readonly string[] = [
  `--bounding-set=-all,${KEPT_CAPABILITIES.map((c) => `+${c}`).join(',')}`,
  '--inh-caps=-all',
]
