/**
 * A frame in one line for a person: who, to whom, what. Enough to see what goes on; tshark knows the rest.
 *
 * Reads what a guest wrote: every length is checked, and what cannot be read is said to be short. Pure.
 */
import { dhcp6, icmp6, upper } from './ipv6.ts'

const ETHERNET = 14
const TYPE_IPV4 = 0x0800
const TYPE_ARP = 0x0806
const TYPE_IPV6 = 0x86dd
const ICMP = 1
const ICMPV6 = 58
const TCP = 6
const UDP = 17

const FLAGS = ['FIN', 'SYN', 'RST', 'PSH', 'ACK', 'URG'] as const
const DHCP = ['', 'DISCOVER', 'OFFER', 'REQUEST', 'DECLINE', 'ACK', 'NAK', 'RELEASE', 'INFORM']
const DHCP_MESSAGE_TYPE = 53
const DHCP_OPTIONS = 240
const DNS_TYPES: Readonly<Record<number, string>> = {
  1: 'A',
  2: 'NS',
  5: 'CNAME',
  6: 'SOA',
  12: 'PTR',
  15: 'MX',
  16: 'TXT',
  28: 'AAAA',
  33: 'SRV',
  65: 'HTTPS',
  255: 'ANY',
}
const RCODES = ['', 'FORMERR', 'SERVFAIL', 'NXDOMAIN', 'NOTIMP', 'REFUSED']
const UNREACHABLE = ['network', 'host', 'protocol', 'port', 'too big']

/** "192.168.100.100:40122 > 93.184.216.34:443 tcp SYN". Printable: nothing a guest sends reaches the terminal as it is. */
export function describe(b: Buffer): string {
  if (b.length < ETHERNET) return 'short frame'
  const type = b.readUInt16BE(12)
  if (type === TYPE_ARP) return arp(b.subarray(ETHERNET))
  if (type === TYPE_IPV4) return ipv4(b.subarray(ETHERNET))
  if (type === TYPE_IPV6) return ipv6(b.subarray(ETHERNET))
  return `${mac(b, 6)} > ${mac(b, 0)} ethertype 0x${type.toString(16).padStart(4, '0')}`
}

function arp(b: Buffer): string {
  if (b.length < 28) return 'arp, short'
  const [sender, target] = [address(b, 14), address(b, 24)]
  if (b.readUInt16BE(6) === 2) return `arp ${sender} is at ${mac(b, 8)}`
  return sender === target ? `arp ${sender} announces itself` : `arp who has ${target}, asks ${sender}`
}

function ipv6(b: Buffer): string {
  const p = upper(b)
  if (typeof p === 'string') return p
  const { source, target, protocol, payload } = p
  if (protocol === ICMPV6) return `${source} > ${target} ${icmp6(payload)}`
  if ((protocol !== TCP && protocol !== UDP) || payload.length < 8)
    return `${source} > ${target} ip protocol ${protocol}`
  return ports(`[${source}]`, `[${target}]`, protocol, payload, p.length)
}

function ports(source: string, target: string, protocol: number, b: Buffer, length: number): string {
  const [from, to] = [b.readUInt16BE(0), b.readUInt16BE(2)]
  return `${source}:${from} > ${target}:${to} ${protocol === TCP ? tcp(b, length) : udp(b, from, to)}`
}

function ipv4(b: Buffer): string {
  const header = ((b[0] ?? 0) & 15) * 4
  if (b.length < 20 || header < 20 || b.length < header) return 'ipv4, short'
  const [src, dst, proto] = [address(b, 12), address(b, 16), b[9]]
  const offset = (b.readUInt16BE(6) & 0x1fff) * 8
  if (offset > 0) return `${src} > ${dst} fragment at ${offset}`
  const total = b.readUInt16BE(2) - header
  const l4 = b.subarray(header)
  if (proto === ICMP) return `${src} > ${dst} ${icmp(l4)}`
  if ((proto !== TCP && proto !== UDP) || l4.length < 8) return `${src} > ${dst} ip protocol ${proto}`
  return ports(src, dst, proto, l4, total)
}

function tcp(b: Buffer, total: number): string {
  if (b.length < 20) return 'tcp, short'
  const bits = b[13] as number
  const flags = FLAGS.filter((_, i) => bits & (1 << i))
  const payload = total - ((b[12] as number) >> 4) * 4
  return `tcp ${flags.join(' ')}${payload > 0 ? ` ${payload} bytes` : ''}`
}

function udp(b: Buffer, from: number, to: number): string {
  const payload = b.subarray(8)
  if (from === 53 || to === 53) return dns(payload)
  if (from === 67 || to === 67) return dhcp(payload)
  if (from === 547 || to === 547) return dhcp6(payload)
  return `udp ${b.readUInt16BE(4) - 8} bytes`
}

function icmp(b: Buffer): string {
  const [type, code] = [b[0], b[1] ?? 0]
  if (b.length < 8) return 'icmp, short'
  if (type === 8) return `ping ${b.readUInt16BE(6)}`
  if (type === 0) return `ping reply ${b.readUInt16BE(6)}`
  if (type === 3) return `icmp unreachable: ${UNREACHABLE[code] ?? (code === 13 ? 'not allowed' : `code ${code}`)}`
  if (type === 11) return 'icmp time exceeded'
  return `icmp type ${type} code ${code}`
}

function dhcp(b: Buffer): string {
  for (let at = DHCP_OPTIONS; at + 2 < b.length && b[at] !== 255; ) {
    if (b[at] === DHCP_MESSAGE_TYPE) return `dhcp ${DHCP[b[at + 2] as number] ?? 'unknown'}`
    at += b[at] === 0 ? 1 : 2 + (b[at + 1] as number)
  }
  return 'dhcp'
}

function dns(b: Buffer): string {
  if (b.length < 12 || b.readUInt16BE(4) !== 1) return 'dns'
  const labels: string[] = []
  let at = 12
  for (let n = b[at] ?? 0; n > 0 && n < 64 && at + 1 + n < b.length; n = b[at] ?? 0) {
    labels.push(printable(b.subarray(at + 1, at + 1 + n)))
    at += 1 + n
  }
  if (at + 3 > b.length) return 'dns'
  const type = b.readUInt16BE(at + 1)
  const question = `${DNS_TYPES[type] ?? `type ${type}`} ${labels.join('.') || '.'}`
  const flags = b.readUInt16BE(2)
  if ((flags & 0x8000) === 0) return `dns ${question}?`
  const rcode = flags & 15
  const answers = b.readUInt16BE(6)
  const said = rcode === 0 ? `${answers} ${answers === 1 ? 'answer' : 'answers'}` : (RCODES[rcode] ?? `rcode ${rcode}`)
  return `dns ${question}: ${said}`
}

const address = (b: Buffer, at: number): string => b.subarray(at, at + 4).join('.')
const mac = (b: Buffer, at: number): string =>
  Array.from(b.subarray(at, at + 6), (x) => x.toString(16).padStart(2, '0')).join(':')
const printable = (b: Buffer): string => b.toString('latin1').replace(/[^\x21-\x7e]/g, '?')
