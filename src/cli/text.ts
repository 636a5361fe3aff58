/**
 * Text for people: aligned tables, ages, sizes, ports. Pure functions; colour is added only for a terminal.
 *
 * Own tables and not a library's: the usual one takes 180 ms to load, more than a whole command may cost.
 */
import type { Network, Publish, Vm } from '../api/contract.ts'

export interface Column<T> {
  readonly head: string
  readonly cell: (row: T) => string
  readonly right?: boolean
}

const bold = (s: string): string => (process.stdout.isTTY && !process.env.NO_COLOR ? `\u001b[1m${s}\u001b[0m` : s)

/** Columns wide enough for their content, two spaces between, nothing trailing. */
export function table<T>(rows: readonly T[], columns: readonly Column<T>[]): string {
  const cells = rows.map((r) => columns.map((c) => c.cell(r)))
  const widths = columns.map((c, i) => Math.max(c.head.length, ...cells.map((row) => row[i]?.length ?? 0)))
  const line = (row: readonly string[]): string =>
    row
      .map((cell, i) => (columns[i]?.right ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0)))
      .join('  ')
      .trimEnd()
  return [bold(line(columns.map((c) => c.head))), ...cells.map(line)].join('\n')
}

/** "name: value" lines, values aligned. */
export function facts(pairs: readonly (readonly [string, string])[]): string {
  const width = Math.max(...pairs.map(([k]) => k.length))
  return pairs.map(([k, v]) => `${`${k}:`.padEnd(width + 1)}  ${v}`.trimEnd()).join('\n')
}

/** Milliseconds as "12s", "4m", "3h", "2d". */
export function age(ms: number): string {
  const s = Math.max(0, Math.floor(ms / 1000))
  if (s < 60) return `${s}s`
  if (s < 3600) return `${Math.floor(s / 60)}m`
  if (s < 86_400) return `${Math.floor(s / 3600)}h`
  return `${Math.floor(s / 86_400)}d`
}

/** Bytes in binary units, three figures. */
export function size(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let n = bytes
  let u = 0
  while (n >= 1024 && u < units.length - 1) {
    n /= 1024
    u += 1
  }
  return `${u === 0 ? n : n.toFixed(n < 10 ? 2 : n < 100 ? 1 : 0)} ${units[u]}`
}

/** What there is of both families, IPv4 first. */
export function ofFamilies(n: Pick<Network, 'ipv4'>, v4: string, v6: string | null): string[] {
  return [...(n.ipv4 ? [v4] : []), ...(v6 === null ? [] : [v6])]
}

export const subnets = (n: Network): string[] => ofFamilies(n, n.subnet, n.subnet6)
export const gateways = (n: Network): string[] => ofFamilies(n, n.gateway, n.gateway6)

export function addresses(v: Pick<Vm, 'address' | 'address6'>, none: readonly string[] = ['-']): readonly string[] {
  const all = [v.address, v.address6].filter((a) => a !== null)
  return all.length === 0 ? none : all
}

/** On one line. */
export const both = (list: readonly string[]): string => list.join(' and ')

/** An address before a colon and a port (RFC 3986 §3.2.2). */
export const hostText = (address: string): string => (address.includes(':') ? `[${address}]` : address)

/** "8080→80", "127.0.0.1:53→53/udp", "[::1]:80→80": as it was typed, without what is the default. */
export function port(p: Publish): string {
  const host = p.hostAddress === '*' ? '' : `${hostText(p.hostAddress)}:`
  return `${host}${p.hostPort}→${p.guestPort}${p.proto === 'udp' ? '/udp' : ''}`
}

/** The spec that `noid port remove` takes. */
export function portSpec(p: Publish): string {
  return port(p).replace('→', ':')
}

export function ports(list: readonly Publish[]): string {
  return list.length === 0 ? '-' : list.map(port).join(' ')
}

/** Guest ports behind which people usually have a web server. */
const WEB = new Set([80, 3000, 5000, 8000, 8080, 8888])

/** What a client on this machine uses to reach a published port: a command where it is likely the web. */
export function reach(p: Publish): string {
  const { hostAddress: at } = p
  const host = at === '*' || at === '0.0.0.0' ? 'localhost' : at === '::' ? '[::1]' : hostText(at)
  if (p.proto === 'tcp' && WEB.has(p.guestPort)) return `curl http://${host}:${p.hostPort}`
  return `${host}:${p.hostPort}${p.proto === 'udp' ? '/udp' : ''}`
}

/**
 * What a guest printed, for a terminal: colours and line ends as they are, whatever else would move the cursor, ask the terminal something or
 * write to its clipboard as a mark. A guest must not type on its host.
 */
export function tame(s: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  const signs = /(\u001b\[[0-9;]*m|\r\n)|[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g
  return s.replace(signs, (_, kept: string | undefined) => kept ?? '·')
}

export function upFor(vm: Vm, now = Date.now()): string {
  return vm.state === 'running' && vm.startedAt ? age(now - Date.parse(vm.startedAt)) : '-'
}
