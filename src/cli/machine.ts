/**
 * What this machine has of what noid needs beside its runtimes (those check themselves): Node, the kernel's features
 * that the data plane uses, limits. Each finding has the command that mends it. Touches nothing and needs no daemon.
 */
import { existsSync, readFileSync } from 'node:fs'
import { release } from 'node:os'
import { checkImages } from '../images/doctor.ts'
import { ownPaths } from '../paths.ts'
import { checkQemu } from '../runtimes/qemu/doctor.ts'
import { type Check, checkMachine } from '../runtimes/sandbox/doctor.ts'

export type { Check } from '../runtimes/sandbox/doctor.ts'

/** Descriptors of one data plane: a TCP or UDP flow takes one. */
const FILES_WANTED = 4096

export async function examine(): Promise<Check[]> {
  const root = process.getuid?.() === 0
  return [
    node(),
    kernel(release()),
    ...(await checkMachine()),
    peekOffset(release()),
    ioUring(read('/proc/sys/kernel/io_uring_disabled')),
    ...(await checkQemu(ownPaths().runDir)),
    checkImages(root),
    ...(root ? [bridgePrograms(process.env.PATH ?? '')] : []),
    ...(root ? [] : [pingSockets(read('/proc/sys/net/ipv4/ping_group_range'), process.getgroups?.() ?? [])]),
    openFiles(read('/proc/self/limits') ?? ''),
    resolver(read('/etc/resolv.conf')),
    ipv6(read('/proc/net/ipv6_route'), read('/proc/net/if_inet6')),
  ]
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim()
  } catch {
    return undefined
  }
}

/** "6.18.44-…" → [6, 18]. */
export function versionOf(text: string): [number, number] {
  const [major = '0', minor = '0'] = text.split('.')
  return [Number.parseInt(major, 10), Number.parseInt(minor, 10)]
}

const atLeast = ([major, minor]: [number, number], wantMajor: number, wantMinor: number): boolean =>
  major > wantMajor || (major === wantMajor && minor >= wantMinor)

function node(): Check {
  return { name: 'Node', ok: true, required: true, detail: process.versions.node }
}

/** 5.12 has id-mapped mounts, 5.11 overlayfs inside a user namespace. */
export function kernel(text: string): Check {
  const base = { name: 'kernel', required: true, detail: text } as const
  if (atLeast(versionOf(text), 5, 12)) return { ...base, ok: true }
  return { ...base, ok: false, detail: `${text}, 5.12 is needed`, hint: 'boot a newer kernel' }
}

/** The TCP relay leaves payload in the host's socket only where SO_PEEK_OFF works for TCP. */
export function peekOffset(text: string): Check {
  const base = { name: 'TCP without a copy', required: false } as const
  if (atLeast(versionOf(text), 6, 9)) return { ...base, ok: true, detail: 'SO_PEEK_OFF works for TCP' }
  return {
    ...base,
    ok: false,
    detail: 'SO_PEEK_OFF needs Linux 6.9 for TCP; a bounded buffer takes its place',
    hint: 'a newer kernel makes TCP faster; nothing else changes',
  }
}

export function ioUring(disabled: string | undefined): Check {
  const base = { name: 'io_uring', required: false } as const
  if (disabled === undefined || disabled === '0') return { ...base, ok: true, detail: 'allowed' }
  return {
    ...base,
    ok: false,
    detail: `kernel.io_uring_disabled is ${disabled}; plain reads and writes take its place`,
    hint: 'as root: sysctl -w kernel.io_uring_disabled=0',
  }
}

/** What `--network-backend bridge` runs. */
export function bridgePrograms(path: string): Check {
  const base = { name: 'kernel bridges', required: false } as const
  const dirs = [...path.split(':'), '/usr/sbin', '/sbin']
  const missing = [
    ['iptables-restore', 'iptables'],
    ['ebtables-restore', 'iptables'],
    ['conntrack', 'conntrack'],
    ['bridge', 'iproute2'],
  ].filter(([program]) => !dirs.some((d) => existsSync(`${d}/${program}`)))
  if (missing.length === 0) return { ...base, ok: true, detail: 'iptables, ebtables, conntrack and bridge are here' }
  const packages = [...new Set(missing.map(([, name]) => name))].join(' ')
  return {
    ...base,
    ok: false,
    detail: `--network-backend bridge needs ${missing.map(([program]) => program).join(', ')}`,
    hint: `as root: apt-get install ${packages}`,
  }
}

/** Without a ping socket an ordinary user's data plane cannot forward ICMP echo to the outside. */
export function pingSockets(range: string | undefined, groups: readonly number[]): Check {
  const base = { name: 'ping to the outside', required: false } as const
  const [from = 1, to = 0] = (range ?? '').split(/\s+/).map(Number)
  if (groups.some((g) => g >= from && g <= to)) return { ...base, ok: true, detail: 'ping sockets are allowed' }
  return {
    ...base,
    ok: false,
    detail: 'ping sockets are not allowed to this user; TCP, UDP and pings between VMs work',
    hint: 'as root: sysctl -w net.ipv4.ping_group_range="0 2147483647"',
  }
}

export function openFiles(limits: string): Check {
  const base = { name: 'open files', required: false } as const
  const hard = /^Max open files\s+\S+\s+(\S+)/m.exec(limits)?.[1] ?? 'unlimited'
  if (hard === 'unlimited' || Number(hard) >= FILES_WANTED) return { ...base, ok: true, detail: `up to ${hard}` }
  return { ...base, ok: false, detail: `at most ${hard}, each flow takes one`, hint: `ulimit -Hn ${FILES_WANTED}` }
}

function resolver(conf: string | undefined): Check {
  const base = { name: 'resolver of this machine', required: false } as const
  const servers = [...(conf ?? '').matchAll(/^\s*nameserver\s+(\S+)/gm)].map((m) => m[1])
  if (servers.length > 0) return { ...base, ok: true, detail: servers.join(', ') }
  return {
    ...base,
    ok: false,
    detail: '/etc/resolv.conf names no server; VMs resolve only each other',
    hint: 'noid follows the file: no restart is needed once it names one',
  }
}

/** What this machine has of IPv6: VMs have it among themselves whatever it is. */
export function ipv6(routes: string | undefined, addresses: string | undefined): Check {
  const base = { name: 'IPv6 of this machine', required: false } as const
  if (routes === undefined || addresses === undefined)
    return {
      ...base,
      ok: false,
      detail: 'the kernel has none: networks are IPv4-only',
      hint: 'start it without ipv6.disable=1',
    }
  // address, index, prefix length, scope (00 is global), flags, link; and a route's destination, its length, ..., flags, link
  const global = addresses.split('\n').some((l) => l.trim().split(/\s+/)[3] === '00')
  const outward = routes.split('\n').some((l) => {
    const f = l.trim().split(/\s+/)
    return f[1] === '00' && /^0+$/.test(f[0] ?? '') && f[9] !== 'lo'
  })
  if (global && outward) return { ...base, ok: true, detail: 'an address and a default route are there' }
  return {
    ...base,
    ok: false,
    detail: `no ${global ? 'default route' : 'address but of its links'}: VMs have IPv6 among themselves, and the outside by IPv4`,
    hint: 'nothing is to be done, unless the outside is to be reached over IPv6: then this machine must reach it first',
  }
}
