/**
 * A DHCP server for one client, for tests: `dhcp-answerer.ts LINK SETTINGS`. Prints a line when it listens.
 *
 * SETTINGS (JSON): address, leaseTime, nak (how many requests to refuse), silent (how many messages to ignore), options.
 * It works on a packet socket, so that its namespace needs no address.
 * With `ipv6` (address, silent, refuse, advertises: ADVERTISE instead of rapid commit, router: false) it is a router and a DHCPv6 server too.
 */
import { decode, encode } from '#dhcp-packet'
import { decode as decode6, duidLinkLayer, encode as encode6 } from '#dhcp-packet/v6'
import { buildFrame, parseFrame } from '../../src/runtimes/dhcp-client/frame.ts'
import { Link } from '../../src/runtimes/dhcp-client/link.ts'

const SERVER = '192.168.77.2'
const SERVER_PORT = 67
const CLIENT_PORT = 68
const settings = {
  address: '192.168.77.100',
  leaseTime: 3600,
  nak: 0,
  silent: 0,
  options: {},
  ...JSON.parse(process.argv[3]!),
}
interface Six {
  readonly address: string
  silent: number
  refuse: number
  readonly advertises: boolean
  readonly router: boolean
}
const six: Six | undefined =
  settings.ipv6 === undefined
    ? undefined
    : { address: 'fd77::100', silent: 0, refuse: 0, advertises: false, router: true, ...settings.ipv6 }
const link = new Link(process.argv[2]!, six !== undefined)
console.log('listening')

/** The frame module speaks for a client: swap the ports to read a client's frame, or to write a server's. */
function swapPorts(f: Buffer): Buffer {
  const b = Buffer.from(f)
  const udp = 14 + (b[14]! & 15) * 4
  const [from, to] = [b.readUInt16BE(udp), b.readUInt16BE(udp + 2)]
  b.writeUInt16BE(to, udp)
  b.writeUInt16BE(from, udp + 2)
  return b
}

const IP6 = 14
const L4 = 54
const ROUTER = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
const mac = (text: string): number[] => text.split(':').map((x) => Number.parseInt(x, 16))

/** An IPv6 frame from the router, with the checksum of its payload put at `check`. */
function frame6(to: Buffer, target: Buffer, protocol: number, payload: Uint8Array, check: number): Buffer {
  const b = Buffer.alloc(L4 + payload.length)
  b.set(to, 0)
  b.set(mac(link.mac), 6)
  b.writeUInt16BE(0x86dd, 12)
  b[IP6] = 0x60
  b.writeUInt16BE(payload.length, IP6 + 4)
  b[IP6 + 6] = protocol
  b[IP6 + 7] = 255
  b.set(ROUTER, IP6 + 8)
  b.set(target, IP6 + 24)
  b.set(payload, L4)
  let s = protocol + payload.length
  for (let i = IP6 + 8; i < b.length; i += 2) s += (b[i]! << 8) | (b[i + 1] ?? 0)
  while (s > 0xffff) s = (s & 0xffff) + (s >>> 16)
  b.writeUInt16BE(~s & 0xffff || 0xffff, L4 + check)
  return b
}

/** RFC 4861 §4.2 with the prefix fd77::/64, on-link and autonomous, as the RFC's §4.6.2 has it. */
function advertisement(): Uint8Array {
  const prefix = [3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0, 0xfd, 0x77, ...Array(14).fill(0)]
  const options = [1, 1, ...mac(link.mac), 5, 1, 0, 0, 0, 0, 0x05, 0xdc, ...prefix]
  return Uint8Array.of(134, 0, 0, 0, 64, 0xc0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, ...options)
}

function answer6(six: Six, frame: Buffer): void {
  const from = Buffer.from(frame.subarray(6, 12))
  const source = Buffer.from(frame.subarray(IP6 + 8, IP6 + 24))
  if (frame[IP6 + 6] === 58 && frame[L4] === 133) {
    if (!six.router) return
    const nobody = source.every((x) => x === 0)
    const all = Buffer.from('ff020000000000000000000000000001', 'hex')
    const to = nobody ? Buffer.from('333300000001', 'hex') : from
    link.send(frame6(to, nobody ? all : source, 58, advertisement(), 2))
  }
  if (frame[IP6 + 6] !== 17 || frame.readUInt16BE(L4 + 2) !== 547 || six.silent-- > 0) return
  const p = decode6(Buffer.from(frame.subarray(L4 + 8)))
  const refused = six.refuse-- > 0
  const advertise = six.advertises && p.type === 'SOLICIT'
  const payload = encode6({
    type: advertise ? 'ADVERTISE' : 'REPLY',
    transactionId: p.transactionId,
    options: {
      clientId: p.options.clientId,
      serverId: duidLinkLayer('02:00:00:00:77:02'),
      ...(p.type === 'SOLICIT' && !advertise ? { rapidCommit: true } : {}),
      ia: [
        refused
          ? { iaid: p.options.ia?.[0]?.iaid ?? 0, t1: 0, t2: 0, addresses: [], status: { code: 2, message: 'none' } }
          : {
              iaid: p.options.ia?.[0]?.iaid ?? 0,
              t1: settings.leaseTime / 2,
              t2: settings.leaseTime * 0.8,
              addresses: [{ address: six.address, preferred: settings.leaseTime, valid: settings.leaseTime }],
            },
      ],
      dnsServers: ['fd77::2'],
      searchDomains: ['noid.internal'],
    },
  })
  const udp = Buffer.alloc(8 + payload.length)
  udp.writeUInt16BE(547, 0)
  udp.writeUInt16BE(546, 2)
  udp.writeUInt16BE(udp.length, 4)
  udp.set(payload, 8)
  link.send(frame6(from, source, 17, udp, 6))
}

for (;;) {
  const frame = link.receive(1000)
  if (six !== undefined && frame !== undefined && frame.length >= L4 + 8 && frame.readUInt16BE(12) === 0x86dd)
    answer6(six, frame)
  if (frame === undefined || frame.length < 42 || frame.readUInt16BE(36) !== SERVER_PORT) continue
  if (frame.readUInt16BE(34) !== CLIENT_PORT) continue
  const d = parseFrame(swapPorts(frame))
  if (d === undefined || settings.silent-- > 0) continue
  const p = decode(d.payload)
  const refused = p.options.messageType === 'REQUEST' && settings.nak-- > 0
  const granted = {
    leaseTime: settings.leaseTime,
    subnetMask: '255.255.255.0',
    routers: ['192.168.77.1'],
    dnsServers: [SERVER],
    searchDomains: ['noid.internal'],
    ...settings.options,
  }
  const answer = encode({
    op: 'reply',
    xid: p.xid,
    chaddr: p.chaddr,
    yiaddr: refused ? '0.0.0.0' : settings.address,
    options: {
      messageType: p.options.messageType === 'DISCOVER' ? 'OFFER' : refused ? 'NAK' : 'ACK',
      serverId: SERVER,
      ...(refused ? {} : granted),
    },
  })
  const to = { sourceMac: link.mac, targetMac: d.sourceMac, source: SERVER, target: settings.address }
  link.send(swapPorts(buildFrame(to, answer)))
}
