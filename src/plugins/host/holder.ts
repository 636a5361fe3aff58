/**
 * Who holds a host l4port: the answer to "address already in use", for a person.
 *
 * /proc/net/{tcp,tcp6,udp,udp6} (proc(5)) give the socket's inode, /proc/PID/fd the process that has it open. A process of another
 * user is not visible to an ordinary user; then only what is known is said.
 */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { basename } from 'node:path'
import { addressBytes } from '../../sys/socket.ts'

/** TCP_LISTEN, include/net/tcp_states.h. A bound UDP socket is TCP_CLOSE (7). */
const LISTEN = '0A'
const ANY = /^0+$/

/** "192.168.1.5" or "fd00::1" as /proc/net/{tcp,tcp6} write it: 32-bit words in host order. */
export function procAddress(text: string): string {
  const bytes = addressBytes(text)
  const from = text.includes(':') ? 0 : 12
  let hex = ''
  for (let word = from; word < 16; word += 4)
    for (let i = 3; i >= 0; i--) hex += (bytes[word + i] as number).toString(16).padStart(2, '0')
  return hex.toUpperCase()
}

/** ::ffff:0:0/96 in a tcp6 table: an IPv4 address of a socket for both families. */
const MAPPED = /^0{16}FFFF0000/

/**
 * Inodes of sockets in a /proc/net table that keep `address:port` from being bound.
 * @param address of either family, 0.0.0.0 or :: for all of one, * for all of both
 */
export function holdersIn(table: string, proto: 'tcp' | 'udp', address: string, port: number): string[] {
  const four = address === '*' || !address.includes(':')
  const six = address === '*' || address.includes(':')
  const wanted = address === '*' ? '0' : procAddress(address)
  const hexPort = port.toString(16).padStart(4, '0').toUpperCase()
  const inodes: string[] = []
  for (const line of table.split('\n').slice(1)) {
    const f = line.trim().split(/\s+/)
    const [local = '', localPort] = (f[1] ?? '').split(':')
    if (localPort !== hexPort || (proto === 'tcp' && f[3] !== LISTEN)) continue
    const any = ANY.test(local)
    // [::] may be for both families: whether it is cannot be seen here.
    const meets =
      local.length === 8 || MAPPED.test(local)
        ? four && (any || ANY.test(wanted) || local.slice(-8) === wanted)
        : any || (six && (ANY.test(wanted) || local === wanted))
    if (meets && f[9]) inodes.push(f[9])
  }
  return inodes
}

/** "nginx (pid 812)", or undefined when nothing can be seen. */
export function portHolder(proto: 'tcp' | 'udp', address: string, port: number): string | undefined {
  const inodes = new Set<string>()
  for (const table of [proto, `${proto}6`]) {
    try {
      for (const i of holdersIn(readFileSync(`/proc/self/net/${table}`, 'latin1'), proto, address, port)) inodes.add(i)
    } catch {
      // No IPv6 here.
    }
  }
  if (inodes.size === 0) return undefined
  for (const pid of readdirSync('/proc')) {
    if (!/^\d+$/.test(pid)) continue
    try {
      for (const fd of readdirSync(`/proc/${pid}/fd`)) {
        const to = link(`/proc/${pid}/fd/${fd}`)
        if (to?.startsWith('socket:[') && inodes.has(to.slice(8, -1))) return describe(pid)
      }
    } catch {
      // Another user's, or gone.
    }
  }
  return 'a process of another user'
}

function link(path: string): string | undefined {
  try {
    return readlinkSync(path)
  } catch {
    return undefined
  }
}

function describe(pid: string): string {
  const argv = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')
  // By its title, or before it has set that.
  if (argv.some((a) => /^noid data plane |\/dataplane\/main\.[jt]s$/.test(a)))
    return `a VM of another noid network (data plane, pid ${pid})`
  const name = argv[0] ? basename(argv[0]) : readFileSync(`/proc/${pid}/comm`, 'utf8').trim()
  return `${name} (pid ${pid})`
}
