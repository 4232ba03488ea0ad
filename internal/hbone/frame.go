package hbone

const frameHeaderLen = 9
