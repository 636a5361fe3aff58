/** Which offloads of a network device are on: ethtool's old one-word queries (linux/ethtool.h), so that no ethtool is needed. */
import { close, ioctl } from '../sys/fd.ts'
import { Scratch } from '../sys/libc.ts'
import { AF_INET, SOCK_DGRAM, socket } from '../sys/socket.ts'

const SIOCETHTOOL = 0x8946
const QUERIES = { 'rx checksum': 0x14, 'tx checksum': 0x16, tso: 0x1e, gso: 0x23, gro: 0x2b } as const

/** Names of what is on, of a device of this network namespace. A device that does not tell has none. */
export function offloads(ifname: string): string[] {
  const fd = socket(AF_INET, SOCK_DGRAM)
  const value = new Scratch(8)
  const request = new Scratch(40)
  const on: string[] = []
  for (const [name, command] of Object.entries(QUERIES)) {
    request.bytes.fill(0)
    request.setText(0, ifname)
    request.setWord(16, value.address)
    value.setI32(0, command)
    value.setI32(4, 0)
    if (ioctl(fd, SIOCETHTOOL, request.address) === 0 && value.u32(4) !== 0) on.push(name)
  }
  close(fd)
  return on
}
