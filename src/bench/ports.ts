/** The numbers that all stands share. */

/** An address of the host that is not loopback: where its servers are, for every subject. */
export const HOST = '10.99.0.1'
/** iperf3, or the built-in server when there is none. */
export const GUEST_PORT = 5201
/** The built-in server. */
export const TOOL_PORT = 5202
export const UDP_PORT = 5203
/** Of the host, forwarded to GUEST_PORT of the first guest. */
export const PUBLISHED_PORT = 5301
