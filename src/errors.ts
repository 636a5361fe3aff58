/**
 * Every error a person can meet, once: its code, its sentence, its hint.
 *
 * Owns: the catalogue and the one error class that crosses rooms (daemon → api → client → command).
 * Never does: formatting for a terminal (src/commands) or HTTP (src/daemon/server).
 * Invariants: a message is one sentence without a final stop; a hint says what to do next, or is absent.
 * A code never changes its meaning; docs/errors.md is generated from this table.
 */

export interface ErrorEntry {
  /** HTTP status the daemon answers with. */
  readonly status: number
  /** Exit code of the CLI: 2 for wrong usage, 1 for the rest. */
  readonly exit: 1 | 2
  readonly message: (p: Record<string, unknown>) => string
  readonly hint?: (p: Record<string, unknown>) => string
}

const entry = (
  status: number,
  message: ErrorEntry['message'],
  hint?: ErrorEntry['hint'],
  exit: 1 | 2 = status === 400 ? 2 : 1,
): ErrorEntry => ({ status, exit, message, hint })

export const catalogue = {
  // -- names and input ---------------------------------------------------------------------------------------------
  INVALID_INPUT: entry(
    400,
    (p) => `${p.what}`,
    (p) => `${p.hint ?? 'see noid help'}`,
  ),
  NAME_INVALID: entry(
    400,
    (p) => `"${p.name}" is not a usable name for a ${p.kind ?? 'VM'}`,
    () => 'a name has 1 to 63 lower-case letters, digits or hyphens and begins with a letter',
  ),
  NAME_TAKEN: entry(
    409,
    (p) => `a ${p.kind ?? 'VM'} named "${p.name}" exists already`,
    (p) =>
      `choose another name, or remove it with: noid ${p.kind === 'network' ? 'network remove' : 'destroy'} ${p.name}`,
  ),
  VM_UNKNOWN: entry(
    404,
    (p) => `there is no VM named "${p.name}"`,
    () => 'noid list shows the VMs there are',
  ),
  VM_NOT_RUNNING: entry(
    409,
    (p) => `the VM "${p.name}" is not running`,
    (p) => `start it with: noid start ${p.name}`,
  ),
  VM_START_FAILED: entry(
    500,
    (p) => `the VM "${p.name}" did not start: ${p.why}`,
    (p) => `noid logs ${p.name} shows what it printed`,
  ),
  NO_ACTIVE_VM: entry(
    400,
    () => 'no VM was named and this directory has no active one',
    () => 'name one, or choose one with: noid use NAME',
  ),
  NETWORK_UNKNOWN: entry(
    404,
    (p) => `there is no network named "${p.name}"`,
    () => 'noid network list shows the networks there are',
  ),
  NETWORK_IN_USE: entry(
    409,
    (p) => `the network "${p.name}" still has VMs: ${p.vms}`,
    () => 'destroy them first',
  ),
  NETWORK_BACKEND_MISMATCH: entry(
    409,
    (p) => `the network "${p.network}" belongs to the backend ${p.actual}, not ${p.wanted}`,
    () => 'name another network, or leave out --network-backend',
  ),
  BACKEND_UNKNOWN: entry(
    400,
    (p) => `there is no network backend named "${p.name}"`,
    (p) => `there are: ${p.known}`,
  ),
  BACKEND_UNAVAILABLE: entry(
    409,
    (p) => `the network backend ${p.name} cannot be used here: ${p.why}`,
    (p) => `${p.hint ?? 'noid doctor tells what is missing'}`,
  ),
  CAPABILITY_MISSING: entry(
    409,
    (p) => `the network backend ${p.backend} has no way for this: ${p.what}`,
    (p) => `${p.hint ?? 'use --network-backend userspace'}`,
  ),
  RUNTIME_UNKNOWN: entry(
    400,
    (p) => `there is no runtime named "${p.name}"`,
    (p) => `there are: ${p.known}`,
  ),
  RUNTIME_UNAVAILABLE: entry(
    409,
    (p) => `the runtime ${p.name} cannot be used here: ${p.why}`,
    (p) => `${p.hint ?? 'noid doctor tells what is missing'}`,
  ),
  // -- addresses and ports -----------------------------------------------------------------------------------------
  SUBNET_INVALID: entry(
    400,
    (p) => `"${p.subnet}" is not a usable subnet`,
    (p) =>
      p.family === 6
        ? 'give a /64 of unique local or global addresses, such as fd12:3456:789a:1::/64'
        : 'give a private IPv4 subnet of /16 to /28 with no bits behind its prefix, such as 192.168.120.0/24',
  ),
  SUBNET_TAKEN: entry(
    409,
    (p) => `the subnet ${p.subnet} overlaps ${p.by}`,
    (p) => `leave out ${p.family === 6 ? '--subnet6' : '--subnet'} to take the next free one`,
  ),
  ADDRESS_INVALID: entry(
    400,
    (p) => `"${p.address}" is neither an IPv4 nor an IPv6 address`,
    () => 'write it without a prefix, such as 192.168.100.10 or fd12:3456:789a:1::10',
  ),
  ADDRESS_FAMILY: entry(
    409,
    (p) => `the address ${p.address} cannot be used on ${p.network}, which has no IPv${p.family}`,
    (p) => `noid network info ${p.network} shows its subnets`,
  ),
  ADDRESS_OUTSIDE: entry(
    400,
    (p) => `the address ${p.address} is outside the network ${p.network} (${p.subnet})`,
    (p) => `choose one in ${p.subnet}, or leave it out to be given one`,
  ),
  ADDRESS_RESERVED: entry(
    409,
    (p) => `the address ${p.address} is reserved on ${p.network} for the ${p.role}`,
    () => 'choose another address, or leave it out to be given one',
  ),
  ADDRESS_TAKEN: entry(
    409,
    (p) => `the address ${p.address} belongs to the VM "${p.by}"`,
    () => 'choose another address',
  ),
  POOL_EXHAUSTED: entry(
    409,
    (p) => `the network ${p.network} has no free address left in ${p.range}`,
    () => 'destroy a VM, or create a network with noid network create',
  ),
  MAC_INVALID: entry(
    400,
    (p) => `"${p.mac}" is not a unicast MAC address`,
    () => 'write six bytes of which the first is even, such as 02:00:00:12:34:56',
  ),
  MAC_TAKEN: entry(
    409,
    (p) => `the MAC address ${p.mac} belongs to the VM "${p.by}"`,
    () => 'choose another one, or leave it out to be given one',
  ),
  PORT_SPEC_INVALID: entry(
    400,
    (p) => `"${p.spec}" is not a port mapping: ${p.why}`,
    () => 'write [HOSTIP:]HOST:GUEST[/udp], for example 8080:80, [::1]:8080:80 or 127.0.0.1:8000-8010:8000-8010/udp',
  ),
  PORT_BUSY: entry(
    409,
    (p) => `${p.proto} port ${p.port} on ${p.address} is in use by ${p.holder ?? 'another process'}`,
    () => 'choose another host port, or 0 for a free one',
  ),
  PORT_DENIED: entry(
    403,
    (p) => `${p.proto} port ${p.port} on ${p.address} may not be opened by this user`,
    () => 'choose a host port of 1024 or above',
  ),
  PORT_UNKNOWN: entry(
    404,
    (p) => `"${p.vm}" publishes no ${p.spec}`,
    (p) => `noid port list ${p.vm} shows what it publishes`,
  ),
  ATTACHMENT_UNKNOWN: entry(
    404,
    (p) => `there is no attachment "${p.id}" on the network ${p.network}`,
    (p) => `noid network info ${p.network} shows what is attached`,
  ),
  ATTACHED_ALREADY: entry(
    409,
    (p) => `"${p.id}" is attached already, to ${p.network} at ${p.netns}`,
    () => 'detach it first',
  ),
  // -- the machine -------------------------------------------------------------------------------------------------
  TUN_UNAVAILABLE: entry(
    500,
    (p) => `no TAP device can be opened: ${p.why}`,
    () => 'as root: modprobe tun; mknod /dev/net/tun c 10 200; chmod 0666 /dev/net/tun',
  ),
  TOOL_MISSING: entry(
    500,
    (p) => `the program ${p.tool} is not installed`,
    (p) => `install it with: apt-get install ${p.package ?? p.tool}`,
  ),
  NAMESPACES_UNAVAILABLE: entry(
    500,
    (p) => `namespaces cannot be made here: ${p.why}`,
    () => 'noid doctor tells what is missing',
  ),
  IMAGE_INVALID: entry(
    400,
    (p) => `"${p.image}" is not a usable image: ${p.why}`,
    () => 'give a directory or a tar archive with an unpacked root file system',
  ),
  IMAGE_UNKNOWN: entry(
    404,
    (p) => `there is no image named "${p.name}"`,
    (p) => `there are: ${p.known}; noid image import takes your own`,
  ),
  IMAGE_IN_USE: entry(
    409,
    (p) => `the image "${p.name}" is used by ${p.vms}`,
    () => 'destroy them first',
  ),
  IMAGE_FILE_INVALID: entry(
    400,
    (p) => `${p.file} cannot be imported: ${p.why}`,
    () => 'a kernel is a bzImage or a vmlinux for x86-64, a disk is raw, qcow2 or squashfs',
  ),
  IMAGE_TOOLS_MISSING: entry(
    500,
    (p) => `${p.what} needs programs that are not installed: ${p.tools}`,
    (p) => `install them with: apt-get install ${p.packages}`,
  ),
  IMAGE_BUILD_FAILED: entry(
    500,
    (p) => `the image "${p.image}" could not be built: ${p.why}`,
    (p) => `${p.hint ?? 'noid doctor tells what is missing; noid image build shows each step'}`,
  ),
  MOUNT_INVALID: entry(
    400,
    (p) => `${p.source} cannot be mounted: ${p.why}`,
    () => 'write --mount SRC:DST[:ro], SRC a directory of this machine, DST a path in the VM',
  ),
  // -- the daemon --------------------------------------------------------------------------------------------------
  DAEMON_UNREACHABLE: entry(
    503,
    (p) => `the noid daemon at ${p.socket} does not answer`,
    () => 'noid daemon start starts it; noid daemon logs shows why it stopped',
  ),
  DAEMON_VERSION: entry(
    409,
    (p) => `the daemon is noid ${p.daemon} and this command is noid ${p.cli}`,
    () => 'restart it with: noid daemon stop && noid daemon start (VMs keep running)',
  ),
  DAEMON_UPROOTED: entry(
    409,
    (p) => `the daemon, noid ${p.daemon}, runs from an installation that has been removed`,
    () => 'restart it with: noid daemon stop && noid daemon start (VMs keep running)',
  ),
  DAEMON_FORBIDDEN: entry(
    403,
    (p) => `the daemon's socket ${p.socket} may not be used by this user`,
    () => 'join the group noid (which equals root), or leave out --host to use your own daemon',
  ),
  DATAPLANE_LOST: entry(
    500,
    (p) => `the data plane of ${p.network} does not answer`,
    () => 'it is started again; repeat the command',
  ),
  DATAPLANE_FAILED: entry(
    500,
    (p) => `the data plane of ${p.network} did not start: ${p.why}`,
    (p) => `its log is ${p.log}`,
  ),
  CAPTURE_REFUSED: entry(
    409,
    (p) => `${p.network} cannot be captured now: ${p.why}`,
    () => 'end another capture first, or start the VM again',
  ),
  CAPTURE_INTERRUPTED: entry(
    502,
    () => 'the connection to the daemon was lost during the capture',
    () => 'VMs and networks go on; run the command again',
  ),
  CNI_FAILED: entry(
    500,
    (p) =>
      `the CNI plugin ${p.plugin} failed at ${p.command}: ${p.why}${p.code === undefined ? '' : ` (code ${p.code})`}`,
    (p) => (typeof p.details === 'string' ? p.details : 'what it was given is in the conflist of the network'),
  ),
  CNI_PLUGIN_MISSING: entry(
    409,
    (p) => `there is no CNI plugin ${p.plugin} in ${p.dirs}`,
    () =>
      'install the usual ones with: apt-get install containernetworking-plugins; or name where yours are with binDirs',
  ),
  BENCH_FAILED: entry(
    500,
    (p) => `the benchmark did not run: ${p.why}`,
    () => 'noid doctor tells what this machine lacks',
  ),
  EXEC_FAILED: entry(
    500,
    (p) => `the command could not be run in "${p.vm}": ${p.why}`,
    (p) => `noid info ${p.vm} shows its state, noid logs ${p.vm} what it printed`,
  ),
  COPY_FAILED: entry(
    500,
    (p) => `${p.from} could not be copied to ${p.to}: ${p.why}`,
    () => 'what was copied before stays; mend that and copy again',
  ),
  EXEC_INTERRUPTED: entry(
    502,
    () => 'the connection to the daemon was lost while the command ran',
    () => 'the VM itself goes on; run the command again',
  ),
  AGENT_SILENT: entry(
    504,
    (p) => `the agent in "${p.vm}" does not answer`,
    (p) => `noid console ${p.vm} shows what the VM is doing`,
  ),
  AGENT_LOST: entry(
    502,
    (p) => `the channel to the agent in "${p.vm}" was lost: ${p.why}`,
    (p) => `run the command again; noid console ${p.vm} shows what the VM is doing`,
  ),
  AGENT_REFUSED: entry(
    500,
    (p) => `"${p.vm}" could not do what its agent was asked: ${p.why}`,
    (p) => `noid console ${p.vm} shows more`,
  ),
  NO_CONSOLE: entry(
    409,
    (p) => `the VM "${p.name}" has no serial console: the runtime ${p.runtime} gives none`,
    (p) => `noid exec ${p.name} opens a shell in it; noid logs ${p.name} shows what it printed`,
  ),
  DISK_FULL: entry(
    507,
    (p) => `noid cannot write down in ${p.dir} what it does: ${p.why}`,
    () => 'make room on that file system, with noid destroy or noid prune for one, and try again',
  ),
  INTERNAL: entry(
    500,
    (p) => `noid made a mistake: ${p.why}`,
    () => 'NOID_DEBUG=1 shows where; please report it',
  ),
} satisfies Record<string, ErrorEntry>

export type ErrorCode = keyof typeof catalogue

/** What an error looks like in `--json` and on the wire. */
export interface ErrorBody {
  readonly code: ErrorCode
  readonly message: string
  readonly hint?: string
  readonly details: Record<string, unknown>
}

/** The one error that crosses rooms. `details` are the parameters of the catalogue's sentence. */
export class NoidError extends Error {
  readonly code: ErrorCode
  readonly details: Record<string, unknown>
  readonly hint: string | undefined

  constructor(code: ErrorCode, details: Record<string, unknown> = {}, options?: ErrorOptions) {
    const e: ErrorEntry = catalogue[code]
    super(e.message(details), options)
    this.name = 'NoidError'
    this.code = code
    this.details = details
    this.hint = e.hint?.(details)
  }

  get status(): number {
    return catalogue[this.code].status
  }

  get exit(): 1 | 2 {
    return catalogue[this.code].exit
  }

  toJSON(): ErrorBody {
    return { code: this.code, message: this.message, hint: this.hint, details: this.details }
  }

  /** Rebuild an error that came over the wire; an unknown code (another version's) becomes INTERNAL. */
  static from(body: ErrorBody): NoidError {
    return body.code in catalogue
      ? new NoidError(body.code, body.details)
      : new NoidError('INTERNAL', { why: body.message })
  }
}
